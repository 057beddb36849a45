"""What the Dockerfile says."""

import json
import re
from pathlib import Path

TEXT = (Path(__file__).parents[2] / "Dockerfile").read_text(encoding="utf-8")


def base() -> str:
    """The image that it begins with, unless it is told another one."""
    return _only(r"^ARG BASE=(\S+)$")


def port() -> int:
    """The port that it says it listens on."""
    return int(_only(r"^EXPOSE (\d+)$"))


def health_check() -> list[str]:
    """The command that says whether a container is healthy."""
    return json.loads(_only(r"^HEALTHCHECK .*\\\n\s+CMD (\[.*\])$"))


def _only(pattern: str) -> str:
    (found,) = re.findall(pattern, TEXT, re.MULTILINE)
    return found
