"""Where an export goes: a file that is there only when it is whole, or stdout, whose reader may leave."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def standard_output() -> Iterator[BinaryIO]:
    """Stdout as bytes, written out when the block has ended. If its reader leaves, as `head` does, the block is over.

    Raises OSError for anything else that keeps it from being written.
    """
    try:
        yield sys.stdout.buffer
        sys.stdout.flush()
    except OSError as error:
        # Python would try once more at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


class NotAFile(OSError):
    """The output is there and is not a file, so that another one cannot take its place."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is not a file that another one can take the place of: name one, or a new one")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path`, its owner's alone, that takes the place of `path` when the block has ended well.

    If it does not, `path` is as it was. Raises `NotAFile`, or another OSError.
    """
    # A link stays one: what it leads to is replaced.
    target = path.resolve()
    if target.exists() and not target.is_file():
        raise NotAFile(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
