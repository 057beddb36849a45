"""The Lua scripts: each in a file of its own, with what they share in front, known to the server by its content."""

import hashlib
from dataclasses import dataclass
from importlib.resources import files

_FOLDER = files(__package__) / "lua"


@dataclass(frozen=True, slots=True)
class Script:
    """One script. `sha` is the name under which EVALSHA finds it: another content is another script."""

    name: str
    source: str
    sha: str


def load(name: str) -> Script:
    """The script of the file `lua/{name}.lua`."""
    source = "\n".join((_FOLDER / f"{part}.lua").read_text("utf-8") for part in ("common", name))
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
