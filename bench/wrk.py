"""wrk: as many requests as go, from 32 connections at once."""

import json
from dataclasses import dataclass
from pathlib import Path

import machine

CONNECTIONS = 32

SCRIPT = """
local requests, n, count = {}, 0, 0
function init()
    for line in io.lines("%s") do
        local headers = {}
        for name, value in line:gmatch("([^\\t]+)\\t([^\\t]*)\\t") do headers[name] = value end
        count = count + 1
        requests[count] = wrk.format("POST", nil, headers, body)
    end
end
local file = io.open("%s", "rb")
body = file:read("*a")
file:close()
function request()
    n = n %% count + 1
    return requests[n]
end
function done(summary, latency, all)
    local e = summary.errors
    io.write(string.format('\\n{"requests": %%d, "microseconds": %%d, "refused": %%d, "broken": %%d}\\n',
        summary.requests, summary.duration, e.status, e.connect + e.read + e.write + e.timeout))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk saw: answers, how many of them with an error status, connections that broke, and how long it took."""

    requests: int
    microseconds: int
    refused: int
    broken: int

    @property
    def per_second(self) -> float:
        """Answers per second."""
        return self.requests / self.microseconds * 1e6


class Wrk:
    """One kind of request, from several people in turn."""

    def __init__(self, folder: Path, headers: list[dict[str, str]], body: bytes) -> None:
        folder.mkdir(exist_ok=True)
        self._script = folder / "requests.lua"
        (folder / "body").write_bytes(body)
        lines = ("".join(f"{name}\t{value}\t" for name, value in of_one.items()) for of_one in headers)
        (folder / "headers").write_text("\n".join(lines) + "\n")
        self._script.write_text(SCRIPT % (folder / "headers", folder / "body"))

    def run(self, url: str, seconds: float, connections: int = CONNECTIONS) -> Load:
        """Load `url` for so long (whole seconds, as wrk counts them)."""
        options = ("-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", self._script)
        said = machine.run(machine.program("wrk"), *options, url)
        return Load(**json.loads(said.strip().splitlines()[-1]))
