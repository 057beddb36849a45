"""What Prometheus reads, and that nobody can be found in it."""

import re

import pytest

from faregate.accounting.outbox import Lag
from faregate.telemetry.metrics import LedgerNumbers, Metrics, Sources


class Node:
    """The numbers of a node, as its parts keep them."""

    def __init__(self) -> None:
        self.ledger = LedgerNumbers()
        self.lag = Lag(0, 0.0, None, ())
        self.outcomes = {"admitted": 0, "unchecked": 0, "refused": 0, "unavailable": 0}
        self.settlements = 0
        self.holds = 0
        self.jobs: dict[str, float] = {}
        self.keys: dict[str, bool] = {}

    def metrics(self, **more: str) -> Metrics:
        """What it serves."""
        sources = Sources(
            ledger=lambda: self.ledger,
            outbox=lambda: self.lag,
            requests=lambda: self.outcomes,
            settlements=lambda: self.settlements,
            holds=lambda: self.holds,
            jobs=lambda: self.jobs,
            keys=lambda: self.keys,
        )
        return Metrics(sources, version="1.2.3", **more)


async def ask(metrics: Metrics, method: str = "GET") -> tuple[int, dict[bytes, bytes], str]:
    """Status, headers and body of one answer."""
    sent: list[dict] = []

    async def send(message: dict) -> None:
        sent.append(message)

    async def receive() -> dict:
        raise AssertionError("a scrape has no body")

    await metrics({"type": "http", "method": method, "path": "/metrics"}, receive, send)
    start, body = sent
    return start["status"], dict(start["headers"]), body["body"].decode()


async def samples(metrics: Metrics) -> dict[str, float]:
    """Every sample by its name with its labels, `worker` left out."""
    _, _, text = await ask(metrics)
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {re.sub(r',?worker="0"|\{worker="0"\}', "", name).replace("{}", ""): float(value) for name, value in lines}


@pytest.fixture
def node() -> Node:
    return Node()


async def test_a_scrape_reads_the_numbers_of_its_moment(node: Node) -> None:
    metrics = node.metrics()
    assert (await samples(metrics))["faregate_ledger_up"] == 1
    node.ledger = LedgerNumbers(up=False, outages=2, calls=900, writes=300, timeouts=5, rebuilds=1)
    node.lag = Lag(7, 3.5, "away", ("r-1", "r-2"))
    node.outcomes = {"admitted": 11, "unchecked": 12, "refused": 13, "unavailable": 14}
    node.settlements, node.holds = 3, 4
    node.jobs = {"rollups": 1_800_014_400.0}
    node.keys = {"main": True, "spare": False}
    assert await samples(metrics) == {
        'faregate_upstream_key_up{key="main"}': 1,
        'faregate_upstream_key_up{key="spare"}': 0,
        'faregate_build_info{version="1.2.3"}': 1,
        "faregate_ledger_up": 0,
        "faregate_ledger_outages_total": 2,
        "faregate_ledger_calls_total": 900,
        "faregate_ledger_writes_total": 300,
        "faregate_ledger_timeouts_total": 5,
        "faregate_ledger_rebuilds_total": 1,
        "faregate_holds": 4,
        "faregate_settlements_waiting": 3,
        "faregate_outbox_waiting": 7,
        "faregate_outbox_oldest_seconds": 3.5,
        "faregate_outbox_refused_rows": 2,
        'faregate_requests_total{outcome="admitted"}': 11,
        'faregate_requests_total{outcome="unchecked"}': 12,
        'faregate_requests_total{outcome="refused"}': 13,
        'faregate_requests_total{outcome="unavailable"}': 14,
        'faregate_job_last_run_timestamp_seconds{job="rollups"}': 1_800_014_400.0,
    }


async def test_the_answer_is_prometheus_text_that_nobody_keeps(node: Node) -> None:
    status, headers, text = await ask(node.metrics())
    assert status == 200
    assert headers[b"content-type"] == b"text/plain; version=0.0.4; charset=utf-8"
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"content-length"] == b"%d" % len(text)
    assert "# TYPE faregate_ledger_outages_total counter" in text


async def test_no_label_says_more_than_outcome_job_version_and_worker(node: Node) -> None:
    node.jobs = {"rollups": 1_800_014_400.0}
    _, _, text = await ask(node.metrics())
    assert set(re.findall(r'(\w+)="', text)) == {"outcome", "job", "version", "worker"}


async def test_the_workers_of_one_port_are_told_apart(node: Node) -> None:
    _, _, text = await ask(node.metrics(worker="3"))
    values = [line for line in text.splitlines() if not line.startswith("#")]
    assert all('worker="3"' in line for line in values)


async def test_two_nodes_in_one_process_have_numbers_of_their_own(node: Node) -> None:
    other = Node()
    other.holds = 9
    first, second = node.metrics(), other.metrics()
    assert ((await samples(first))["faregate_holds"], (await samples(second))["faregate_holds"]) == (0, 9)


async def test_only_reading_is_possible(node: Node) -> None:
    status, headers, text = await ask(node.metrics(), "POST")
    assert (status, headers[b"allow"], text) == (405, b"GET, HEAD", "")
