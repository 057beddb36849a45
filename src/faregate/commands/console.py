"""What the commands share: settings, the event loop, and how they say what is wrong."""

import logging
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

import uvloop

from faregate.settings import Settings, SettingsError, load_settings

T = TypeVar("T")


def settings(log: Callable[[Settings], None] | None = None) -> Settings:
    """The settings, validated. A wrong one ends the command with the sentence that names it.

    `log` sets logging up by them.
    """
    try:
        loaded = load_settings()
    except SettingsError as error:
        stop(error)
    if log is None:
        # What a command does it says itself, and what it writes to stdout may be read by a program.
        logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    else:
        log(loaded)
    return loaded


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, run to its end."""
    return uvloop.run(work)


def stop(error: Exception) -> NoReturn:
    """End with exit code 2 and one sentence: the message of `error`."""
    print(f"faregate: {error}", file=sys.stderr)  # noqa: T201 - a command speaks to whoever called it
    sys.exit(2)
