"""What is said about the project beside its code, and that it is true."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator
from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest
from dotenv import dotenv_values
from pydantic import SecretStr

import faregate
from faregate.settings import Settings

ROOT = Path(__file__).parents[2]
NOT_OURS = {".venv", ".git", "data", "dist", "build", "__pycache__"}
LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-build.lock")
NAMES = {name.upper() for name in Settings.model_fields}
TABLE_ROW = re.compile(r"^\| `([A-Z_]+)` \| (?:`(.*?)`)? *\| \S.* \|$", re.MULTILINE)


def files() -> Iterator[Path]:
    """The text files that belong to the project."""
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if not path.is_file() or NOT_OURS & set(parts) or path.name == ".env":
            continue
        if any(part.endswith(("_cache", ".egg-info")) or part == ".hypothesis" for part in parts):
            continue
        yield path


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def example() -> dict[str, str | None]:
    """The settings of `.env.example` as its reader gets them who uncomments every one."""
    return dotenv_values(stream=StringIO(re.sub(r"^# (?=[A-Z_]+=)", "", read(".env.example"), flags=re.MULTILINE)))


def documented() -> dict[str, str]:
    return dict(TABLE_ROW.findall(read("docs/settings.md")))


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_env_example_and_the_documentation_have_every_setting_and_no_other():
    assert set(example()) == NAMES
    assert set(documented()) == NAMES


def test_nothing_is_set_in_env_example_until_it_is_uncommented():
    assert re.findall(r"^[^#\s].*", read(".env.example"), re.MULTILINE) == []


def test_every_setting_in_env_example_has_a_line_that_says_what_it_means():
    lines = read(".env.example").splitlines()
    for before, line in pairwise(lines):
        if re.match(r"# [A-Z_]+=", line):
            assert re.match(r"# (?![A-Z_]+=|---)\S", before), line


@pytest.mark.usefixtures("clean_environment")
def test_uncommenting_all_of_env_example_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    defaults = Settings()
    for name, value in example().items():
        monkeypatch.setenv(name, value or "")
    assert Settings() == defaults


def test_the_documentation_tells_the_same_defaults_as_env_example():
    assert documented() == example()


def test_no_setting_has_a_default_secret():
    secret = {
        name
        for name, field in Settings.model_fields.items()
        if SecretStr in (field.annotation, *typing.get_args(field.annotation))
    }
    assert {"openrouter_api_key", "admin_api_key", "gateway_api_keys", "openwebui_jwt_secrets"} <= secret
    assert {name: Settings.model_fields[name].default for name in secret} == dict.fromkeys(secret)
    assert {name: value for name, value in example().items() if name.lower() in secret and value} == {}


def test_no_file_holds_something_that_looks_like_a_real_key():
    real = re.compile(
        r"sk-or-v1-[0-9a-f]{32}|sk-proj-\w{20}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_\w{30}|-----BEGIN [A-Z ]*PRIVATE KEY"
    )
    found = [path for path in files() if real.search(path.read_text(encoding="utf-8", errors="replace"))]
    assert found == []


def test_no_shipped_file_assigns_a_secret():
    assigned = re.compile(
        r"""(?i)^[^#\n]*\b\w*(?:secret|password|api_?key|token)\w*["']?\s*(?::\s*str\s*)?[=:]\s*["'][\w+/.-]{12,}["']""",
        re.MULTILINE,
    )
    shipped = [
        path for path in files() if path.suffix in {".py", ".yml", ".yaml", ".toml"} and "tests" not in path.parts
    ]
    assert [path for path in shipped if assigned.search(path.read_text(encoding="utf-8"))] == []


def test_the_first_two_commands_of_the_readme_are_make_run_and_make_test():
    blocks = re.findall(r"^```\w*\n(.*?)^```", read("README.md"), re.MULTILINE | re.DOTALL)
    commands = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    assert commands[:2] == ["make run", "make test"]


@pytest.mark.parametrize("left_behind", ["nothing", "an interrupted install"])
def test_make_run_without_a_fitting_python_stops_with_one_sentence(tmp_path: Path, left_behind: str):
    for name in ("Makefile", "pyproject.toml", *LOCKS):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    if left_behind == "an interrupted install":
        (tmp_path / ".venv/bin").mkdir(parents=True)
        (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    command = ["scripts/bootstrap", "run"]
    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHON": "python2.7"}, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(
        "faregate: Python 3.11 or newer is needed and was not found (looked for python2.7): "
    )
    assert ended.stderr.count("\n") == 1


def test_ci_runs_make_test_and_the_workflow_runs_ci():
    assert "\nmake test\n" in read(".ci/run")
    assert "- run: .ci/run\n" in read(".github/workflows/ci.yml")


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_has_one_version_and_hashes(lock: str):
    entries = re.split(r"\n(?=\S)", read(lock).strip())
    pinned = re.compile(r"[a-z0-9._-]+==\S+( ;[^\\]*)?( \\\n    --hash=sha256:[0-9a-f]{64})+")
    assert entries
    assert [entry.splitlines()[0] for entry in entries if not pinned.fullmatch(entry)] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_file_names_no_package_index(lock: str):
    assert re.findall(r"://|^\s*--(?!hash=).*", read(lock), re.MULTILINE) == []


def test_the_lock_files_agree_where_they_lock_the_same_package():
    versions: dict[str, set[str]] = {}
    for lock in LOCKS:
        for name, version in re.findall(r"^([a-z0-9._-]+)==(\S+)", read(lock), re.MULTILINE):
            versions.setdefault(name, set()).add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_everything_that_pyproject_asks_for_is_locked():
    project = tomllib.loads(read("pyproject.toml"))
    for lock, wanted in (
        ("requirements.lock", project["project"]["dependencies"]),
        ("requirements-dev.lock", project["project"]["dependencies"] + project["dependency-groups"]["dev"]),
        ("requirements-build.lock", project["build-system"]["requires"]),
    ):
        locked = set(re.findall(r"^([a-z0-9._-]+)==", read(lock), re.MULTILINE))
        assert {re.match(r"[\w.-]+", name).group().lower() for name in wanted} <= locked


def test_the_version_is_stated_once():
    project = tomllib.loads(read("pyproject.toml"))
    assert "version" in project["project"]["dynamic"]
    quoted = re.compile(rf"""["']{re.escape(faregate.__version__)}["']""")
    stating = [path for path in files() if path.suffix in {".py", ".toml", ".cfg"} and quoted.search(path.read_text())]
    assert stating == [ROOT / "src/faregate/__init__.py"]


def test_links_in_the_documentation_lead_to_files():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).is_file(), f"{page.name} links to {link}"
