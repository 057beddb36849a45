"""A container engine, where this machine has one, and an image for the build to begin with."""

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE = 600
"""Seconds for one command: a build fetches all packages."""
TRUST = (Path("/etc/pip.conf"), Path("/etc/ssl/certs"))
"""How pip finds its index on this machine, which may not be PyPI itself."""
OWN_BASE = "localhost/faregate-test-base:bookworm"


class NoEngine(Exception):
    """Nothing here can build or start an image. The message says what was looked for."""


class NoBase(Exception):
    """No base image can be had. The message says what was tried."""


@dataclass(frozen=True)
class Engine:
    """Docker or Podman: how it is called here, and what only a build or a start by it needs."""

    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    building: tuple[str, ...] = ()
    starting: tuple[str, ...] = ()

    def run(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of its commands; an error tells what the engine said."""
        ended = subprocess.run(
            [*self.command, *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert ended.returncode == 0 or not check, f"{arguments[0]}: {ended.stdout}{ended.stderr}"
        return ended

    def has_image(self, name: str) -> bool:
        """Whether `name` is in its store."""
        return self.run("image", "inspect", name, check=False).returncode == 0


def find_engine(folder: Path) -> Engine:
    """Docker if its daemon answers, else Podman with a store of its own in `folder`. Raises `NoEngine`."""
    if shutil.which("docker"):
        docker = Engine(("docker",))
        if docker.run("info", check=False).returncode == 0:
            return docker
    if not shutil.which("podman"):
        raise NoEngine("neither a Docker daemon nor podman is here")
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "containers.conf"
    # In a sandbox limits cannot be raised, and systemd keeps no cgroups.
    configuration.write_text('[containers]\ndefault_ulimits = []\n[engine]\ncgroup_manager = "cgroupfs"\n')
    runtime = ("--runtime", "runc") if shutil.which("runc") else ()
    podman = Engine(
        ("podman", "--root", str(folder / "store"), "--runroot", str(folder / "run"), *runtime),
        environment={"CONTAINERS_CONF": str(configuration)},
        # Its own format leaves the HEALTHCHECK out.
        building=(
            *("--format", "docker", "--isolation", "chroot", "--network", "host"),
            *(f"--volume={path}:{path}:ro" for path in TRUST if path.exists()),
        ),
        # Else it makes /tmp, /run and /dev writable on a root that is read-only.
        starting=("--read-only-tmpfs=false",),
    )
    works = podman.run("info", check=False)
    if works.returncode != 0:
        raise NoEngine(f"podman is here and does not work: {works.stderr.strip()}")
    return podman


def base_image(engine: Engine, wanted: str, folder: Path) -> str:
    """`wanted` from its registry, or where that cannot be reached one like it, of Debian's packages, kept in `folder`.

    Raises `NoBase`.
    """
    for name in (wanted, OWN_BASE):
        if engine.has_image(name):
            return name
    pulled = engine.run("pull", wanted, check=False)
    if pulled.returncode == 0:
        return wanted
    if os.geteuid() != 0 or not shutil.which("debootstrap"):
        raise NoBase(f"{wanted} cannot be pulled, and debootstrap is not here or this is not root: {pulled.stderr}")
    archive = folder / "base.tar"
    if not archive.exists():
        _make_base(folder / "base", archive)
    engine.run("import", archive, OWN_BASE)
    return OWN_BASE


def _make_base(root: Path, archive: Path) -> None:
    """A Debian with Python and nothing else, as `archive`."""
    packages = "--include=python3,python3-venv,ca-certificates"
    shutil.rmtree(root, ignore_errors=True)
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", packages, "bookworm", root],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if made.returncode != 0:
        raise NoBase(f"debootstrap could not make a base image: {made.stdout[-500:]}{made.stderr[-500:]}")
    unfinished = archive.with_suffix(".part")
    subprocess.run(["tar", "-C", root, "-cf", unfinished, "--exclude=./var/cache/apt/archives/*.deb", "."], check=True)
    unfinished.rename(archive)
    shutil.rmtree(root)
