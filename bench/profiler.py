"""Where the time goes: py-spy looks at Faregate under load, 200 times a second."""

import re
import shutil
from collections import Counter
from pathlib import Path

import machine
from measures import Bench
from wrk import Wrk

SECONDS = 15
RATE = 200
"""Looks per second. More would themselves be a load."""

TOP = 60
FRAME = re.compile(r":\d+\)$")
"""The line in a frame `function (file:line)`."""

MARGIN = 5
"""Seconds that the load lasts longer than the looking on."""


def check() -> None:
    """Raises `CannotMeasure` if py-spy is missing."""
    if shutil.which("py-spy") is None:
        raise machine.CannotMeasure("py-spy is missing. Install it with `pipx install py-spy`, so that it is on PATH.")


def profile(bench: Bench, name: str, wrk: Wrk, stacks: Path, results: Path) -> Path:
    """Look on while Faregate is loaded: whole stacks into the folder `stacks`, the top functions into `results`."""
    wrk.run(f"{bench.faregate.url}/v1/chat/completions", 2)
    stacks.mkdir(parents=True, exist_ok=True)
    folded = stacks / f"{name}.folded"
    where = ("--pid", bench.faregate.pid, "--output", folded, "--format", "raw")
    looking = machine.start(
        "py-spy", "record", *where, "--duration", SECONDS, "--rate", RATE, "--nonblocking", piped=True
    )
    try:
        load = wrk.run(f"{bench.faregate.url}/v1/chat/completions", SECONDS + MARGIN)
        said, _ = looking.communicate(timeout=60)
    finally:
        looking.kill()
        looking.wait()
    if looking.returncode != 0:
        raise machine.CannotMeasure(f"py-spy failed: {said}")
    bench.faregate.settle()
    text = f"{name}, {load.per_second:,.0f} requests/s while looked at\n\n{_top(folded.read_text())}"
    results.mkdir(exist_ok=True)
    file = results / f"profile-{name}.txt"
    file.write_text(text)
    print(text)
    return file


def _top(folded: str) -> str:
    """The functions by what they use themselves, and with all that they call, in percent of the samples."""
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    samples = 0
    for line in folded.splitlines():
        stack, _, seen = line.rpartition(" ")
        frames = [FRAME.sub(")", frame) for frame in stack.split(";")]
        samples += int(seen)
        own[frames[-1]] += int(seen)
        for function in set(frames):
            total[function] += int(seen)
    lines = [" own  total  function"]
    for function, number in own.most_common(TOP):
        lines.append(f"{number / samples:5.1%} {total[function] / samples:6.1%}  {function}")
    return "\n".join(lines) + "\n"
