"""The first minutes: nothing is configured, and what the start prints works."""

import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from commands import DEADLINE, FAREGATE, Process

READY = r"^  API +http://127\.0\.0\.1:(?P<port>\d+)/v1"


def start(folder: Path, **settings: str) -> Process:
    return Process(["serve"], ready=READY, folder=folder, settings={"HOST": "127.0.0.1", "PORT": "0"} | settings)


def commands_of(output: str) -> list[str]:
    """The commands that a start prints, each with its continuation lines."""
    return [found.replace("\\\n", " ") for found in re.findall(r"^  (curl (?:.*\\\n)*.*)$", output, re.MULTILINE)]


def run(command: str, folder: Path) -> str:
    # In a shell, as a person would: later starts print commands that look the key up.
    if not shutil.which("curl"):  # neither an empty Debian nor a slim image has it
        stand_in = shlex.join([sys.executable, str(Path(__file__).with_name("curl.py"))])
        command = f'curl() {{ {stand_in} "$@"; }}\n{command}'
    ended = subprocess.run(
        ["sh", "-c", command], cwd=folder, capture_output=True, text=True, check=True, timeout=DEADLINE
    )
    return ended.stdout


def output_of(process: Process) -> str:
    process.stop()
    return process.output


def test_the_printed_commands_stream_an_answer_and_show_its_cost(tmp_path: Path):
    process = start(tmp_path)
    url = f"http://127.0.0.1:{process.port}"
    # The banner is one write; what follows the line that was waited for may still be in the pipe.
    process.await_line(r"/admin/usage")
    ask, look = commands_of(process.output)

    streamed = run(ask, tmp_path)
    assert streamed.rstrip().endswith("data: [DONE]")
    (record,) = httpx.Response(200, text=run(look, tmp_path)).json()
    (bill,) = httpx.get(f"{url}/_simulator/bills").json()
    assert (record["status"], record["email"]) == ("completed", "demo@example.com")
    assert Decimal(record["cost"]) == Decimal(bill["total"]) > 0
    process.stop()

    assert "SIMULATOR" in process.output
    assert "The default policy has no limits" in process.output


def test_generated_keys_are_their_owners_alone_and_shown_once(tmp_path: Path):
    first = output_of(start(tmp_path))
    file = tmp_path / "data/keys.env"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    keys = dict(line.split("=", 1) for line in file.read_text().splitlines() if "=" in line)
    assert all(key in first for key in keys.values())

    process = start(tmp_path)
    process.await_line(r"/admin/usage")
    ask, look = commands_of(process.output)
    assert "data: [DONE]" in run(ask, tmp_path)
    assert len(httpx.Response(200, text=run(look, tmp_path)).json()) == 1
    second = output_of(process)
    assert file.read_text().splitlines()[1:] == [f"{name}={key}" for name, key in sorted(keys.items())]
    assert not [key for key in keys.values() if key in second]


def test_what_the_start_says_to_paste_into_open_webui_can_be_read_by_it(tmp_path: Path):
    output = output_of(start(tmp_path))
    settings = dict(re.findall(r"^  ([A-Z_]+)='?(.*?)'?$", output, re.MULTILINE))
    assert settings["ENABLE_FORWARD_USER_INFO_HEADERS"] == "true"
    assert settings["OPENAI_API_KEYS"] in (tmp_path / "data/keys.env").read_text()
    connection = httpx.Response(200, text=settings["OPENAI_API_CONFIGS"]).json()["0"]
    assert connection["auth_type"] == "bearer"
    assert connection["headers"] == {"X-Faregate-Task": "{{TASK}}", "X-Faregate-Groups": "{{USER_GROUPS}}"}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"PORT": "many"}, "PORT should be"),
        ({"IDENTITY": "jwt"}, "OPENWEBUI_JWT_SECRETS should hold"),
        ({"TIMEZONE": "Europe/Atlantis"}, "TIMEZONE should be an IANA time zone"),
        ({"REDIS_URL": "http://localhost"}, "REDIS_URL should be"),
        ({"GATEWAY_API_KEYS": "a:one,b:one"}, "GATEWAY_API_KEYS should hold each name and key once"),
        ({"DATABASE_URL": "mysql://localhost/x"}, "DATABASE_URL should be"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_stops_the_start_with_one_sentence_that_names_it(
    tmp_path: Path, settings: dict[str, str], sentence: str
):
    ended = subprocess.run(
        [FAREGATE, "serve"], cwd=tmp_path, env=settings, capture_output=True, text=True, check=False, timeout=DEADLINE
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"faregate: {sentence}"), ended.stderr
    assert ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("level", "written"), [("warning", True), ("error", False)])
def test_no_more_is_logged_than_was_asked_for(tmp_path: Path, level: str, written: bool):
    process = start(tmp_path, LOG_LEVEL=level)
    with socket.create_connection(("127.0.0.1", process.port), DEADLINE) as client:
        client.sendall(b"this is no HTTP\r\n\r\n")
        assert client.recv(64).startswith(b"HTTP/1.1 400")
    output = output_of(process)
    assert ("Invalid HTTP request" in output) is written
    assert " INFO " not in output
