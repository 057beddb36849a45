"""What a node counts, for Prometheus: `/metrics`.

Everything is read when it is asked for, from plain numbers that the parts keep anyway. No label has a person, a
model or a caller's key in it, so the number of series does not grow with either.
"""

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector


class LedgerNumbers(NamedTuple):
    """The state of a ledger, and how often things happened to it since the start of the node.

    `writes` are the pipelines in which the `calls` left. `rebuilds` are those that this node did. A ledger in the
    node's own process is always up, and has nothing to count.
    """

    up: bool = True
    outages: int = 0
    calls: int = 0
    writes: int = 0
    timeouts: int = 0
    rebuilds: int = 0


class Backlog(Protocol):
    """Rows on their way to the database."""

    @property
    def waiting(self) -> int:
        """How many there are."""
        ...

    @property
    def oldest(self) -> float:
        """How long the oldest has waited, in seconds."""
        ...

    @property
    def dead(self) -> Collection[str]:
        """Those that the database refused: they are not written until somebody sees to it."""
        ...


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the numbers are. Each is called at every scrape, and answers from memory.

    `requests` are those that came to the point of admission, by outcome. `settlements` is how many requests are over
    and not settled yet, `holds` how many live holds are this node's. `jobs` is when this node last did each job. `keys`
    is whether each upstream key takes its share, by the name that an administrator gave it.
    """

    ledger: Callable[[], LedgerNumbers]
    outbox: Callable[[], Backlog]
    requests: Callable[[], Mapping[str, int]]
    settlements: Callable[[], int]
    holds: Callable[[], int]
    jobs: Callable[[], Mapping[str, float]] = dict
    keys: Callable[[], Mapping[str, bool]] = dict


class Metrics:
    """A small ASGI application that answers Prometheus, in its text format."""

    path = "/metrics"

    def __init__(self, sources: Sources, *, version: str, worker: str = "0") -> None:
        """`worker` tells the processes behind one port apart: a scrape reaches any of them."""
        self._registry = CollectorRegistry()
        self._registry.register(_Numbers(sources, version, worker))

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        """Answer one scrape."""
        if scope["method"] in ("GET", "HEAD"):
            status, text, more = 200, generate_latest(self._registry), []
        else:
            status, text, more = 405, b"", [(b"allow", b"GET, HEAD")]
        headers = [
            (b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),
            (b"content-length", b"%d" % len(text)),
            (b"cache-control", b"no-store"),
            *more,
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text, "more_body": False})


class _Numbers(Collector):
    def __init__(self, sources: Sources, version: str, worker: str) -> None:
        self._sources = sources
        self._version = version
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        sources = self._sources
        build = InfoMetricFamily("faregate_build", "The version that runs.", labels=["worker"])
        build.add_metric([self._worker], {"version": self._version})
        yield build
        ledger = sources.ledger()
        yield self._gauge("faregate_ledger_up", "1 while the ledger answers, 0 while it is away.", ledger.up)
        yield self._counter("faregate_ledger_outages", "Times that the ledger went away.", ledger.outages)
        yield self._counter("faregate_ledger_calls", "Calls of scripts in Redis.", ledger.calls)
        yield self._counter("faregate_ledger_writes", "Pipelines in which the calls left.", ledger.writes)
        yield self._counter("faregate_ledger_timeouts", "Calls that Redis did not answer in time.", ledger.timeouts)
        yield self._counter(
            "faregate_ledger_rebuilds", "Times that this node rebuilt the counters from the database.", ledger.rebuilds
        )
        yield self._gauge("faregate_holds", "Live holds of this node.", sources.holds())
        yield self._gauge(
            "faregate_settlements_waiting", "Requests that are over and not settled yet.", sources.settlements()
        )
        outbox = sources.outbox()
        yield self._gauge("faregate_outbox_waiting", "Rows that the database does not have yet.", outbox.waiting)
        yield self._gauge("faregate_outbox_oldest_seconds", "How long the oldest of these rows waits.", outbox.oldest)
        yield self._gauge(
            "faregate_outbox_refused_rows", "Rows that the database refused; the log says which.", len(outbox.dead)
        )
        requests = CounterMetricFamily(
            "faregate_requests", "Requests by the outcome of their admission.", labels=["worker", "outcome"]
        )
        for outcome, number in sources.requests().items():
            requests.add_metric([self._worker, outcome], number)
        yield requests
        jobs = GaugeMetricFamily(
            "faregate_job_last_run_timestamp_seconds",
            "When this node last did a job without an error; of several nodes the latest counts.",
            labels=["worker", "job"],
        )
        for job, ran_at in sources.jobs().items():
            jobs.add_metric([self._worker, job], ran_at)
        yield jobs
        keys = GaugeMetricFamily(
            "faregate_upstream_key_up",
            "1 while requests are sent with this key, 0 while it rests or is left out.",
            labels=["worker", "key"],
        )
        for key, up in sources.keys().items():
            keys.add_metric([self._worker, key], up)
        yield keys

    def _gauge(self, name: str, meaning: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, meaning, labels=["worker"])
        family.add_metric([self._worker], value)
        return family

    def _counter(self, name: str, meaning: str, value: int) -> Metric:
        family = CounterMetricFamily(name, meaning, labels=["worker"])
        family.add_metric([self._worker], value)
        return family
