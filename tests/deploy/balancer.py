"""The balancer of deploy/compose, with its own configuration, in front of gateways of this machine."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import httpx

CONFIG = Path(__file__).parents[2] / "deploy/compose/nginx.conf"
DEADLINE = 10.0
"""Seconds that its start or its end may take before a test gives up."""


def program() -> str | None:
    """nginx, where this machine has it."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


class Balancer:
    """nginx, balancing between the ports of gateways."""

    def __init__(self, folder: Path, port: int, gateways: list[int]) -> None:
        """`folder` takes its files."""
        self.url = f"http://127.0.0.1:{port}"
        self._config = folder / "nginx.conf"
        self._config.write_text(configuration(folder, port, gateways))
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it answers when this returns."""
        nginx = program()
        assert nginx is not None
        # Else root's nginx would hand its work to a user who may not enter the folder of a test.
        user = "user root; " if os.geteuid() == 0 else ""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [nginx, "-c", self._config, "-g", f"{user}daemon off;"], stdout=log, stderr=log
            )
        deadline = time.monotonic() + DEADLINE
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, "nginx does not answer"
            time.sleep(0.02)

    def remove(self) -> None:
        """Stop it, at once."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(DEADLINE)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/metrics").status_code == 404
        except httpx.TransportError:
            return False


def configuration(folder: Path, port: int, gateways: list[int]) -> str:
    """The configuration of deploy/compose with other addresses and another folder, and nothing else changed."""
    text = CONFIG.read_text()
    servers = "\n".join(f"server 127.0.0.1:{gateway} max_fails=0;" for gateway in gateways)
    for pattern, there in (
        (r"(?:\s*server gateway-\d:8080 resolve max_fails=0;)+", f"\n{servers}"),
        (r"\n *resolver [^;]*;", ""),
        (r"\blisten 8080;", f"listen 127.0.0.1:{port};"),
    ):
        text, number = re.subn(pattern, there, text)
        assert number == 1, pattern
    return text.replace(" /tmp/", f" {folder}/")
