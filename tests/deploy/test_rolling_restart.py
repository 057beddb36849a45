"""Five gateways, started as the Kubernetes manifests start them, are replaced one by one while people ask."""

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from balancer import Balancer, program
from books import until
from commands import ADMIN_KEY, CONNECTION_KEY, DEADLINE, FAREGATE, UPSTREAM_KEY, Gateway, Simulator
from fleet import bills_of, running
from manifests import Manifests, containers
from open_webui import Person, signed_headers, somebody, user_turn
from postgres import Postgres
from redis_server import RedisServer

GATEWAYS = 5
AT_ONCE = 8
JWT_SECRET = "what-open-webui-signs-with-in-the-tests"


class Pod(NamedTuple):
    """A pod of the gateway on this machine: its folder, and the settings of its two containers, in their order."""

    folder: Path
    migrate: dict[str, str]
    serve: dict[str, str]

    def start(self) -> Gateway:
        """Run one container, then the other; it serves when this returns."""
        path = {"PATH": os.environ["PATH"], "DATA_DIR": str(self.folder / "data")}
        command = [FAREGATE, "migrate"]
        subprocess.run(command, cwd=self.folder, env=path | self.migrate, check=True, timeout=DEADLINE)
        return Gateway.start(self.folder, self.serve)


class World(NamedTuple):
    """What a test needs: the pods, what is in front of them, and what is behind them."""

    pods: list[Pod]
    balancer: Balancer
    simulator: Simulator
    redis: RedisServer


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    if program() is None:
        pytest.skip("there is no nginx here to be the balancer; apt-get install nginx-light brings one")
    manifests = Manifests("minikube")
    with ExitStack() as stack:
        (tmp_path / "simulator").mkdir()
        simulator = Simulator(tmp_path / "simulator")
        stack.callback(simulator.stop)
        redis = stack.enter_context(running(RedisServer(persistent=True)))
        postgres = stack.enter_context(running(Postgres()))
        secret = {
            "FAREGATE_DATABASE_URL": postgres.url(postgres.create_database()),
            "FAREGATE_REDIS_URL": redis.url,
            "OPENROUTER_API_KEY": UPSTREAM_KEY,
            "ADMIN_API_KEY": ADMIN_KEY,
            "GATEWAY_API_KEYS": f"openwebui:{CONNECTION_KEY}",
            "OPENWEBUI_JWT_SECRETS": JWT_SECRET,
        }
        *ports, front = free_ports(GATEWAYS + 1)
        pods = [new_pod(tmp_path, port, manifests, secret, simulator) for port in ports]
        (tmp_path / "balancer").mkdir()
        balancer = stack.enter_context(running(Balancer(tmp_path / "balancer", front, ports)))
        yield World(pods, balancer, simulator, redis)


def test_a_rolling_restart_under_load_fails_no_request(world: World):
    people = [somebody() for _ in range(AT_ONCE)]
    over = threading.Event()
    gateways: list[Gateway] = []
    try:
        # At once, on an empty database: one makes the schema, the others wait for it.
        with ThreadPoolExecutor(GATEWAYS) as starting:
            gateways += starting.map(Pod.start, world.pods)
        gateways[0].set_policy(limits=[{"meter": "usd", "window": "day", "amount": "100"}])
        before = [gateway.process.pid for gateway in gateways]

        with ThreadPoolExecutor(AT_ONCE) as asking:
            answers = [asking.submit(ask_until, over, world.balancer, person) for person in people]
            try:
                for number, pod in enumerate(world.pods):
                    # SIGTERM; it ends well, after its answers.
                    gateways[number].process.stop()
                    gateways[number] = pod.start()
            finally:
                over.set()
            numbers = [answer.result() for answer in answers]

        assert set(before).isdisjoint(gateway.process.pid for gateway in gateways)
        assert min(numbers) >= GATEWAYS
        until(lambda: total(gateways[0], people)[0] == sum(numbers))
        # Each answer was paid for once, whichever gateway gave it, and is counted on the others.
        assert total(gateways[0], people) == (sum(numbers), sum(bills_of(world.simulator)))
        with world.redis.client() as client:
            assert client.dbsize() > 0
    finally:
        for gateway in gateways:
            gateway.process.end()


def ask_until(over: threading.Event, balancer: Balancer, person: Person) -> int:
    """Ask for a stream and for an answer in one piece, in turn; each has to come whole. How many came."""
    came = 0
    with httpx.Client(timeout=DEADLINE) as client:
        while not over.is_set():
            streamed = came % 2 == 0
            answer = client.post(
                f"{balancer.url}/v1/chat/completions",
                headers=signed_headers(person, CONNECTION_KEY, JWT_SECRET),
                json=user_turn("Hello [[tokens=20]] [[pace=0.02]]", stream=streamed, tools=[]),
            )
            assert answer.status_code == 200, answer.text
            assert "error" not in answer.text
            assert answer.text.endswith("data: [DONE]\n\n") if streamed else answer.json()["choices"]
            came += 1
    return came


def total(gateway: Gateway, people: list[Person]) -> tuple[int, Decimal]:
    """How many completed requests of these people are in the records, and what they cost in dollars."""
    records = [record for person in people for record in gateway.usage(user=person.email, limit=1000)]
    assert {record["status"] for record in records} <= {"completed"}
    return len(records), sum((Decimal(record["cost"]) for record in records), Decimal(0))


def new_pod(folder: Path, port: int, manifests: Manifests, secret: dict[str, str], simulator: Simulator) -> Pod:
    """A pod as the Deployment describes it. What is of this machine is its address, its folder and its upstream."""
    migrate, serve = containers(manifests.one("Deployment", "faregate"))
    assert migrate["command"] == ["faregate", "migrate"]
    assert serve["command"] == ["faregate", "serve"]
    here = {"HOST": "127.0.0.1", "PORT": str(port), "OPENROUTER_BASE_URL": f"{simulator.url}/api/v1"}
    own = folder / f"gateway-{port}"
    own.mkdir()
    return Pod(own, manifests.filled(migrate, secret), manifests.filled(serve, secret) | here)


def free_ports(number: int) -> list[int]:
    """So many different ports that nobody listens on."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
