"""The command `faregate` as a process of its own: started, waited for, stopped."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import httpx

FAREGATE = Path(sys.executable).with_name("faregate")
DEADLINE = 30.0
"""Seconds that a start or a stop may take before a test gives up."""

ADMIN_KEY = "admin-of-the-tests"
CONNECTION_KEY = "connection-of-the-tests"
UPSTREAM_KEY = "sk-or-v1-tests"


class Process:
    """One running `faregate ...`, with nothing of this process's settings in its environment."""

    def __init__(self, arguments: list[str], *, ready: str, folder: Path, settings: dict[str, str]) -> None:
        """`ready` is a pattern of the line after which it serves; its group `port` is the port."""
        environment = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "LANG") if name in os.environ}
        self._process = subprocess.Popen(
            [FAREGATE, *arguments],
            cwd=folder,
            env={**environment, "HOME": str(folder), "PYTHONUNBUFFERED": "1", **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._output: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.port = int(self.await_line(ready)["port"])

    @property
    def output(self) -> str:
        """What it has written so far, errors included."""
        return "".join(self._output)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def wait(self) -> int:
        """Its exit code, once it has ended by itself."""
        code = self._process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        return code

    def await_line(self, pattern: str) -> re.Match[str]:
        """The first match in a line that no call has looked at yet."""
        deadline = time.monotonic() + DEADLINE
        try:
            while (line := self._lines.get(timeout=max(0.0, deadline - time.monotonic()))) is not None:
                if found := re.search(pattern, line):
                    return found
            self.wait()
        except queue.Empty:
            self.kill()
        raise AssertionError(f"It did not write what matches {pattern}:\n{self.output}")

    def terminate(self) -> None:
        """SIGTERM; it ends in its own time."""
        self._process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """SIGTERM, and it should end well."""
        self.terminate()
        try:
            code = self.wait()
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"It did not end within {DEADLINE} s of SIGTERM:\n{self.output}") from None
        assert code == 0, f"It ended with {code}:\n{self.output}"

    def end(self) -> None:
        """Stop it, unless the test has done so."""
        if self._process.poll() is None:
            self.stop()

    def kill(self) -> None:
        """SIGKILL: it gets to do nothing more."""
        self._process.kill()
        self.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._output.append(line)
                self._lines.put(line)
        self._lines.put(None)


class Simulator:
    """A running `faregate simulator`."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._process = Process(
            ["simulator", "--port", "0", *options],
            ready=r"simulator on http://127\.0\.0\.1:(?P<port>\d+)/api/v1",
            folder=folder,
            settings={},
        )
        self.url = f"http://127.0.0.1:{self._process.port}"
        self.stop = self._process.stop

    def bills(self) -> list[dict[str, object]]:
        """Every generation, and what OpenRouter would have charged for it."""
        return httpx.get(f"{self.url}/_simulator/bills").raise_for_status().json()

    def last(self) -> list[dict[str, object]]:
        """The last chat requests as they came."""
        return httpx.get(f"{self.url}/_simulator/last").raise_for_status().json()

    def stats(self) -> dict[str, int]:
        """How many chat requests came, and how many at once."""
        return httpx.get(f"{self.url}/_simulator/stats").raise_for_status().json()

    def set_key(self, key: str, **state: str | int) -> None:
        """What is wrong with a key: `error=`, or `in_flight=` and `retry_after=`; nothing, without either."""
        httpx.post(f"{self.url}/_simulator/keys", json={"key": key, **state}).raise_for_status()

    def reset(self) -> None:
        """Forget all of these."""
        httpx.post(f"{self.url}/_simulator/reset").raise_for_status()


class Gateway:
    """A running `faregate serve`, and its administrator."""

    def __init__(self, process: Process, data_dir: Path) -> None:
        self.process = process
        self.data_dir = data_dir
        self.url = f"http://127.0.0.1:{process.port}"

    @classmethod
    def start(cls, folder: Path, settings: dict[str, str], state: str | None = "ready") -> Self:
        """Start it in `folder`, where no `.env` is; it should come up in `state`, if that is known.

        A setting of "" is its default.
        """
        data_dir = folder / "data"
        process = Process(
            ["serve"],
            ready=r"^  API +http://127\.0\.0\.1:(?P<port>\d+)/v1",
            folder=folder,
            settings={"HOST": "127.0.0.1", "PORT": "0", "DATA_DIR": str(data_dir)} | settings,
        )
        gateway = cls(process, data_dir)
        if state is None:
            return gateway
        ready = httpx.get(f"{gateway.url}/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, state), ready.text
        return gateway

    def admin(self, method: str, path: str, **more: object) -> httpx.Response:
        """Ask the admin API for something that works."""
        answer = httpx.request(
            method, f"{self.url}/admin{path}", headers={"x-admin-key": ADMIN_KEY}, timeout=DEADLINE, **more
        )
        assert answer.is_success, answer.text
        return answer

    def set_policy(self, policy_id: str = "default", **policy: object) -> None:
        """Create or replace a policy."""
        self.admin("POST", "/policies", json={"id": policy_id, **policy})

    def usage(self, **parameters: str | int) -> list[dict[str, object]]:
        """Usage records, newest first."""
        return self.admin("GET", "/usage", params=parameters).json()

    def user(self, email: str) -> dict[str, object]:
        """The one person with this e-mail."""
        (found,) = [user for user in self.admin("GET", "/users").json() if user["email"] == email.lower()]
        return found

    def quota(self, email: str) -> list[dict[str, object]]:
        """What limits this person."""
        return self.admin("GET", f"/users/{self.user(email)['id']}/quota").json()


Launch = Callable[..., Gateway]
"""What the fixture `launch` is: settings in, a running gateway out."""
