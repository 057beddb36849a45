"""What deploy/compose says: its services, as Docker Compose reads them, and the variables it asks for."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values

FOLDER = Path(__file__).parents[2] / "deploy/compose"
# What is behind `:-` may hold another variable.
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])((?:[^{}]|\$\{[^{}]*\})*))?\}")


@dataclass(frozen=True)
class Variable:
    """`${NAME:-default}`, or `${NAME:?sentence}`, which has no default and stops Compose where it is not set.

    `${NAME:-${OTHER}}` has none of its own either.
    """

    name: str
    required: bool
    default: str | None


def load() -> dict[str, Any]:
    """The file, with anchors and merges resolved and variables as they are written."""
    return yaml.safe_load(_text("compose.yaml"))


def services() -> dict[str, dict[str, Any]]:
    """Its services by name."""
    return load()["services"]


def variables() -> set[Variable]:
    """Every variable that the file asks for."""
    return set(_variables(_text("compose.yaml")))


def fill(value: str, variables: dict[str, str]) -> str:
    """`value` as a container gets it."""

    def one(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        if variables.get(name):
            return variables[name]
        assert kind == "-", f"{name} is required and not set"
        return VARIABLE.sub(one, rest)

    return VARIABLE.sub(one, value).replace("$$", "$")


def environment(service: str, variables: dict[str, str]) -> dict[str, str]:
    """The environment that `service` gets."""
    return {name: fill(value, variables) for name, value in services()[service].get("environment", {}).items()}


def example() -> str:
    """The text of .env.example."""
    return _text(".env.example")


def example_values() -> dict[str, str | None]:
    """What .env.example sets."""
    return dotenv_values(stream=StringIO(example()))


def example_defaults() -> dict[str, str | None]:
    """What it shows as a default, commented out."""
    shown = "\n".join(re.findall(r"^# ([A-Z][A-Z0-9_]*=.*)$", example(), re.MULTILINE))
    return dotenv_values(stream=StringIO(shown))


def balancer() -> str:
    """The configuration of nginx, without its comments."""
    return re.sub(r"^\s*#.*\n", "", _text("nginx.conf"), flags=re.MULTILINE)


def seconds(duration: str) -> float:
    """The seconds of `45s`."""
    assert duration.endswith("s")
    return float(duration.removesuffix("s"))


def _variables(text: str) -> Iterator[Variable]:
    for name, kind, rest in VARIABLE.findall(text):
        inside = list(_variables(rest))
        yield Variable(name, kind == "?", rest if kind == "-" and not inside else None)
        yield from inside


def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
