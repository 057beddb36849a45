"""The machine of the measurement: what it is, which programs it has, what its processes have used."""

import os
import platform
import resource
import shutil
import socket
import subprocess
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
ROOT = Path(__file__).parent.parent
PACKAGES = {"wrk": "wrk", "nginx": "nginx-light", "openssl": "openssl"}
"""The programs that have to be there, and the Debian packages that have them."""

MOST_FILES = 65_536
DEADLINE = 600.0
"""Seconds after which a program that should end by itself never will."""


class CannotMeasure(Exception):
    """The measurement cannot begin or go on. The message is a sentence that says why."""


def program(name: str) -> str:
    """Where `name` is. Raises `CannotMeasure` if it is nowhere."""
    # Debian keeps nginx where only root looks for it.
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise CannotMeasure(f"{name} is missing. Install it, on Debian with `apt-get install {PACKAGES[name]}`.")
    return found


def check() -> None:
    """Raises `CannotMeasure` with all that is missing."""
    missing = []
    for name in PACKAGES:
        try:
            program(name)
        except CannotMeasure as reason:
            missing.append(str(reason))
    if not Path("/proc/self/stat").exists():
        missing.append("There is no /proc: CPU time is read there, on Linux.")
    if missing:
        raise CannotMeasure("\n".join(missing))


def run(*command: object) -> str:
    """What a program writes, that ends by itself. Raises `CannotMeasure` if it fails."""
    parts = [str(part) for part in command]
    ended = subprocess.run(parts, capture_output=True, text=True, check=False, timeout=DEADLINE)  # noqa: S603
    if ended.returncode != 0:
        raise CannotMeasure(f"{' '.join(parts[:2])} failed: {(ended.stdout + ended.stderr)[-1000:]}")
    return ended.stdout + ended.stderr


def start(*command: object, piped: bool = False) -> "subprocess.Popen[str]":
    """A program that goes on; with `piped`, what it writes can be read."""
    output = subprocess.PIPE if piped else None
    return subprocess.Popen(list(map(str, command)), stdout=output, stderr=output and subprocess.STDOUT, text=True)  # noqa: S603


def raise_open_files() -> None:
    """Let this process and those it starts open as many files as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def open_files() -> int:
    """How many files a process may open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def is_root() -> bool:
    return os.geteuid() == 0


def free_ports(count: int) -> list[int]:
    """So many ports that nobody has, in ascending order."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return sorted(probe.getsockname()[1] for probe in probes)
    finally:
        for probe in probes:
            probe.close()


def children(pid: int) -> list[int]:
    """The processes that `pid` started, and that still run."""
    found = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def parent(pid: int) -> int:
    """Who started `pid`."""
    return int(_stat(pid)[1])


def tree(pid: int) -> list[int]:
    """`pid`, and all that descend from it."""
    return [pid, *(descendant for child in children(pid) for descendant in tree(child))]


def cpu(pids: list[int]) -> float:
    """Seconds of CPU that these processes have used (user and system), with their children that have ended."""
    used = 0
    for pid in pids:
        # One that has ended meanwhile: its parent has its time now, or at the next reading.
        with suppress(FileNotFoundError, ProcessLookupError):
            used += sum(int(ticks) for ticks in _stat(pid)[11:15])
    return used / TICKS


def resident(pid: int) -> int:
    """Bytes of memory that the process has now."""
    return int(_stat(pid)[21]) * PAGE


def describe() -> dict[str, object]:
    """What the figures were measured on."""
    model = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "")
    memory = os.sysconf("SC_PHYS_PAGES") * PAGE
    return {
        "processor": model or platform.machine(),
        "cores": os.cpu_count(),
        "memory": f"{memory / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "nginx": _said("nginx", "-v").rpartition("/")[2],
        "wrk": _said("wrk", "-v").split()[1],
        "commit": _commit(),
        "load at the start": round(os.getloadavg()[0], 1),
    }


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: the second is a name, which may have anything in it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _cpuinfo() -> list[str]:
    return Path("/proc/cpuinfo").read_text().splitlines()


def _said(name: str, option: str) -> str:
    # wrk tells its version, and then how it is used, as a failure.
    return start(program(name), option, piped=True).communicate(timeout=DEADLINE)[0].splitlines()[0].strip()


def _commit() -> str:
    """That of the Faregate which is measured: PYTHONPATH may point to another one than ours."""
    spec = find_spec("faregate")
    if shutil.which("git") is None or spec is None or spec.origin is None:
        return "unknown"
    try:
        return run("git", "-C", Path(spec.origin).parent, "describe", "--always", "--dirty").strip()
    except CannotMeasure:
        return "unknown"
