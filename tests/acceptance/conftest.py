"""The real commands on real sockets: a simulator as upstream, and gateways in front of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Gateway, Launch, Simulator
from fleet import defaults


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    """An OpenRouter for this file of tests. It knows what an answer cost 0.2 seconds after its end."""
    running = Simulator(tmp_path_factory.mktemp("simulator"), "--generation-delay", "0.2")
    yield running
    running.stop()


@pytest.fixture
def launch(simulator: Simulator, tmp_path: Path) -> Iterator[Launch]:
    """Starts gateways: `launch(IDENTITY="jwt", ...)`. A second one with the same `folder` goes on with its data.

    Each should end well on SIGTERM, unless the test has ended it already.
    """
    started: list[Gateway] = []

    def start(folder: str = "gateway", state: str = "ready", **settings: str) -> Gateway:
        (tmp_path / folder).mkdir(exist_ok=True)
        gateway = Gateway.start(tmp_path / folder, defaults(simulator) | settings, state)
        started.append(gateway)
        return gateway

    yield start
    for gateway in reversed(started):
        gateway.process.end()


@pytest.fixture(scope="module")
def gateway(simulator: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway for this file of tests, in the mode `headers`. Tests of it should use people of their own."""
    running = Gateway.start(tmp_path_factory.mktemp("gateway"), defaults(simulator))
    yield running
    running.process.end()
