"""The image: built as the Dockerfile says, and started as hardened as Compose and Kubernetes start it."""

import re
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from subprocess import run
from threading import Thread

import dockerfile
import httpx
import pytest
from engine import Engine, NoBase, NoEngine, base_image, find_engine

from faregate import __version__
from faregate.health import Health

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build/image"
"""What takes a minute to make and does not change: the base image, and the layers of the build."""
TAG = "localhost/faregate:test"
DEADLINE = 60
"""Seconds in which a container has to be ready, or gone."""
HARDENED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")
CONNECTION_KEY = "connection-of-the-tests"


@pytest.fixture(scope="module")
def engine() -> Engine:
    try:
        return find_engine(KEPT)
    except NoEngine as error:
        pytest.skip(f"no image can be built: {error}")


@pytest.fixture(scope="module")
def image(engine: Engine) -> str:
    try:
        base = base_image(engine, dockerfile.base(), KEPT)
    except NoBase as error:
        pytest.skip(f"no image can be built: {error}")
    arguments = (f"--build-arg=BASE={base}", f"--build-arg=VERSION={__version__}", f"--tag={TAG}")
    engine.run("build", *engine.building, *arguments, ROOT)
    return TAG


@pytest.fixture(scope="module")
def container(engine: Engine, image: str) -> Iterator[str]:
    """The id of one that serves."""
    settings = f"--env=GATEWAY_API_KEYS=tests:{CONNECTION_KEY}"
    started = engine.run("run", "--detach", *HARDENED, *engine.starting, settings, "--publish=127.0.0.1::8080", image)
    name = started.stdout.strip().splitlines()[-1]
    yield name
    engine.run("rm", "--force", "--volumes", name, check=False)


@pytest.fixture(scope="module")
def url(engine: Engine, container: str) -> str:
    """Where it serves, once it is ready."""
    address = engine.run("port", container, "8080/tcp").stdout.split()[-1]
    with httpx.Client(transport=httpx.HTTPTransport(retries=0)) as client:
        for _ in range(DEADLINE * 5):
            try:
                if client.get(f"http://{address}/readyz").status_code == 200:
                    return f"http://{address}"
            except httpx.TransportError:
                running = engine.run("inspect", "--format={{.State.Running}}", container).stdout.strip()
                assert running == "true", engine.run("logs", container)
            # Nothing outside a container can wait for an event in it.
            time.sleep(0.2)
    pytest.fail(f"not ready after {DEADLINE} s: {engine.run('logs', container)}")


def test_a_chat_is_answered_from_a_root_that_is_read_only(url: str):
    answer = httpx.post(
        f"{url}/v1/chat/completions",
        headers={"Authorization": f"Bearer {CONNECTION_KEY}", "X-OpenWebUI-User-Id": "zoe"},
        json={"model": "simulator/plain", "messages": [{"role": "user", "content": "Hello"}]},
    )
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"]
    assert httpx.get(f"{url}/_simulator/stats").json()["requests"] == 1


@pytest.mark.usefixtures("url")
def test_it_runs_as_nobody_of_the_machine_and_can_write_to_its_data_alone(engine: Engine, container: str):
    assert engine.run("exec", container, "id", "-u").stdout.strip() == "10001"
    for folder in ("/", "/tmp", "/opt/faregate", "/run"):
        assert engine.run("exec", container, "touch", f"{folder}/mark", check=False).returncode != 0
    engine.run("exec", container, "touch", "/var/lib/faregate/mark")


@pytest.mark.usefixtures("url")
def test_its_health_check_finds_it_healthy(engine: Engine, container: str):
    engine.run("exec", container, *dockerfile.health_check())


def test_it_has_no_tool_to_install_more(engine: Engine, image: str):
    script = "import importlib.util, sys; sys.exit(importlib.util.find_spec('pip') is not None)"
    engine.run("run", "--rm", *HARDENED, "--entrypoint=/opt/faregate/bin/python3", image, "-c", script)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["--version"], f"faregate {__version__}"),
        (["migrate"], "the database went from nothing to"),
        (["simulator", "--help"], "--generation-delay"),
    ],
)
def test_the_same_image_does_the_other_jobs(engine: Engine, image: str, command: list[str], says: str):
    ended = engine.run("run", "--rm", *HARDENED, *engine.starting, image, *command)
    assert says in ended.stdout


def test_its_labels_say_what_it_is(engine: Engine, image: str):
    shown = engine.run("image", "inspect", "--format={{json .Config.Labels}}", image).stdout
    assert f'"org.opencontainers.image.version":"{__version__}"' in shown
    assert '"org.opencontainers.image.licenses":"MIT"' in shown


# After all others: they need it running.
@pytest.mark.usefixtures("url")
def test_told_to_stop_it_ends_by_itself_with_success(engine: Engine, container: str):
    engine.run("stop", "-t", str(DEADLINE), container)
    assert engine.run("inspect", "--format={{.State.ExitCode}}", container).stdout.strip() == "0"


class Probed(BaseHTTPRequestHandler):
    """Answers every probe with `status`, and remembers which were asked."""

    status = 200
    asked: tuple[str, ...] = ()

    def do_GET(self) -> None:
        type(self).asked += (self.path,)
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_asks_whether_it_can_serve(status: int, code: int):
    handler = type("Handler", (Probed,), {"status": status})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        answering = Thread(target=server.handle_request)
        answering.start()
        environment = {"PORT": str(server.server_port), "http_proxy": "http://127.0.0.1:9"}
        ended = run([sys.executable, *dockerfile.health_check()[1:]], env=environment, check=False)
        answering.join()
    assert ended.returncode == code
    assert set(handler.asked) <= Health.paths


def test_the_health_check_fails_where_nobody_listens():
    with HTTPServer(("127.0.0.1", 0), Probed) as server:
        port = server.server_port
    ended = run(
        [sys.executable, *dockerfile.health_check()[1:]], env={"PORT": str(port)}, capture_output=True, check=False
    )
    assert ended.returncode != 0


def test_nothing_but_what_the_dockerfile_copies_gets_into_a_build():
    copied = set(re.findall(r"[\w.-]+", " ".join(re.findall(r"^COPY (?!--)(.*) \S+$", dockerfile.TEXT, re.MULTILINE))))
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)
