"""The keys of this deployment: configured, or made once at the first start and kept for the owner alone."""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from faregate.settings import Connection, Settings, SettingsError

FILE = "keys.env"
ADMIN = "ADMIN_API_KEY"
CONNECTION = "GATEWAY_API_KEY"
CONNECTION_NAME = "openwebui"
"""The name of the connection whose key was made here."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys in use. `new` says which were made by this very start, and may be shown this once."""

    admin: SecretStr
    connections: tuple[Connection, ...]
    file: Path
    made_here: frozenset[str]
    new: frozenset[str]


def load_keys(settings: Settings) -> Keys:
    """The configured keys; those that are not configured from `DATA_DIR`, made there if this is the first start.

    Of several processes that start at once, one makes them, and all have the same.
    Raises `SettingsError` when the file cannot be read or written, or others than its owner could read it.
    """
    file = settings.data_dir / FILE
    wanted = set()
    if settings.admin_api_key is None:
        wanted.add(ADMIN)
    connections = settings.connections()
    if not connections:
        wanted.add(CONNECTION)
    kept = _read(file) if wanted else {}
    new: frozenset[str] = frozenset()
    if wanted - kept.keys():
        with _alone(file):
            # Another process may have made them while this one waited.
            kept = _read(file)
            new = frozenset(wanted - kept.keys())
            if new:
                kept |= {name: _make(name) for name in sorted(new)}
                _write(file, kept)
    return Keys(
        admin=settings.admin_api_key or SecretStr(kept[ADMIN]),
        connections=connections or (Connection(CONNECTION_NAME, SecretStr(kept[CONNECTION])),),
        file=file,
        made_here=frozenset(wanted),
        new=new,
    )


def _make(name: str) -> str:
    prefix = "fg-admin-" if name == ADMIN else "sk-fg-"
    return prefix + secrets.token_urlsafe(32)


def _read(file: Path) -> dict[str, str]:
    try:
        if file.stat().st_mode & 0o077:
            raise SettingsError(f"{file} holds keys and others can read it: make it yours alone with chmod 600 {file}.")
        lines = file.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"DATA_DIR should be a directory of yours: {file} cannot be read ({error}).") from None
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {name.strip(): value.strip() for name, value in pairs if value.strip()}


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Where no other process is at the same time. The lock is the file itself: it goes with the process."""
    try:
        while True:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Who had the lock before has put a new file in the place of the one that was waited for.
            if _is_at(descriptor, file):
                break
            os.close(descriptor)
    except OSError as error:
        raise SettingsError(f"DATA_DIR should be a directory that can be written: {error}.") from None
    try:
        yield
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _write(file: Path, keys: dict[str, str]) -> None:
    text = "# Keys that Faregate made at its first start. Delete a line to have that key made anew.\n"
    text += "".join(f"{name}={value}\n" for name, value in sorted(keys.items()))
    new = file.with_suffix(".new")
    try:
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.replace(new, file)
    except OSError as error:
        raise SettingsError(f"DATA_DIR should be a directory that can be written: {error}.") from None
