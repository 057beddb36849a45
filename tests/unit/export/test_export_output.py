"""An export's file: whole, or as it was."""

import os
import stat
from pathlib import Path

import pytest

from faregate.export.output import NotAFile, whole_file


def test_a_file_is_there_when_it_is_whole_and_not_before(tmp_path: Path):
    path = tmp_path / "usage.csv"
    with whole_file(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_it_is_its_owners_alone(tmp_path: Path):
    path = tmp_path / "usage.csv"
    with whole_file(path):
        pass
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_what_was_there_stays_when_an_export_fails(tmp_path: Path, failure: type[BaseException]):
    path = tmp_path / "usage.csv"
    path.write_bytes(b"of yesterday")

    def fail_half_way():
        with whole_file(path) as file:
            file.write(b"half")
            raise failure

    with pytest.raises(failure):
        fail_half_way()
    assert path.read_bytes() == b"of yesterday"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    link, path = tmp_path / "latest.csv", tmp_path / "elsewhere/usage.csv"
    link.symlink_to(path)
    with whole_file(link) as file:
        file.write(b"whole")
    assert link.is_symlink()
    assert path.read_bytes() == b"whole"


def test_what_is_not_a_file_is_left_alone(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe):
        with pytest.raises(NotAFile, match="is not a file"), whole_file(path):
            pass
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]
