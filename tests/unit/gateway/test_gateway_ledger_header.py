"""What every answer of the data plane says about the ledger, whichever way it ends."""

import asyncio
import json
import socket
from typing import Any

import pytest
from gateway_world import WHY, World
from pydantic import SecretStr

from faregate.gateway.identity import Gatekeeper
from faregate.gateway.models import ModelList
from faregate.gateway.relay import Relay
from faregate.gateway.routes import Gateway
from faregate.gateway.settlement import Settler
from faregate.gateway.upstream import Upstream, UpstreamSettings
from faregate.ledger.port import LedgerAway
from faregate.settings import Connection, OnOutage, Settings

KEY = "sk-connection-key"
CHAT = json.dumps({"model": "acme/cheap", "messages": [{"role": "user", "content": "Hello"}]}).encode()


class Node:
    """A data plane whose OpenRouter does not listen, so that what was admitted ends in an error at once."""

    def __init__(self, on_outage: OnOutage, port: int, world: World, keep: Any) -> None:
        self.on_outage = on_outage
        self.world = world
        self.upstream = Upstream(UpstreamSettings(f"http://127.0.0.1:{port}/api/v1", "key", None, "", 5, 5, 5))
        self.gateway = Gateway(
            Gatekeeper(Settings(_env_file=None), (Connection("owui", SecretStr(KEY)),)),
            world.admitter,
            Relay(self.upstream, world.ledger, Settler(world.accountant), "the help desk"),
            ModelList(self.upstream, keep),
            new_id=lambda: "req-1",
            ledger_away=lambda: world.ledger.failure is not None,
            log_requests=False,
            max_in_flight=100,
        )

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, list[bytes]]:
        """Status and what the answer says about the ledger."""
        sent: list[Any] = []
        received = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if not received:
                # It stays to the end.
                await asyncio.Event().wait()
            return received.pop()

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"authorization", b"Bearer " + KEY.encode()), (b"x-openwebui-user-id", b"ada")]
        await self.gateway({"type": "http", "method": method, "path": path, "headers": headers}, receive, send)
        said = [value for name, value in sent[0]["headers"] if name == b"x-faregate-ledger"]
        return sent[0]["status"], said


@pytest.fixture
def dead_port() -> Any:
    """A port on which nobody listens, and that nobody else gets."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture(params=[OnOutage.CLOSED, OnOutage.OPEN])
async def node(request: pytest.FixtureRequest, dead_port: int, tmp_path: Any) -> Any:
    node = Node(request.param, dead_port, World(request.param), tmp_path / "catalogue.json")
    yield node
    node.upstream.close()


async def test_nothing_is_said_in_normal_operation(node: Node) -> None:
    assert await node.ask("GET", "/v1/models") == (200, [])
    assert await node.ask("GET", "/v1/nowhere") == (404, [])


async def test_every_answer_tells_of_an_outage(node: Node) -> None:
    node.world.ledger.failure = LedgerAway(WHY)
    assert await node.ask("GET", "/v1/models") == (200, [b"away"])
    assert await node.ask("GET", "/v1/nowhere") == (404, [b"away"])
    assert await node.ask("POST", "/v1/chat/completions", b"not JSON") == (400, [b"away"])


async def test_a_chat_is_refused_as_away_or_let_in_as_unchecked(node: Node) -> None:
    node.world.ledger.failure = LedgerAway(WHY)
    status, said = await node.ask("POST", "/v1/chat/completions", CHAT)
    # Let in means: sent to an OpenRouter that is not there.
    expected = {OnOutage.CLOSED: (503, [b"away"]), OnOutage.OPEN: (502, [b"unchecked"])}
    assert (status, said) == expected[node.on_outage]
