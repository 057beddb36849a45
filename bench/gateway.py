"""What the gateway costs beside nginx: `make bench` (bench/gateway.py --help says what else it can do).

Everything is on: signed identities, six limits, counters in Redis, records in PostgreSQL. Upstream is nginx with
recorded answers, or a paced one; beside Faregate, in the same runs, nginx passes the same requests on to the same
upstream. CPU time is read from /proc, once all that the load gave to do is done. Nothing is asserted about it.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import document
import machine
import measures
import nginx
import picture
import profiler
from figures import Figures, Row
from measures import Bench
from paced import Paced
from systems import Faregate, Proxy, Stores

RESULTS = machine.ROOT / "bench" / "results" / "gateway.json"
DOCUMENT = machine.ROOT / "docs" / "performance.md"
PICTURE = machine.ROOT / "docs" / "performance.svg"
STACKS = machine.ROOT / "build" / "profile"


@dataclass(frozen=True, slots=True)
class Pacing:
    """How many events a stream has, and how many milliseconds are between them."""

    events: int
    milliseconds: int


@dataclass(frozen=True, slots=True)
class Measure:
    """A measurement: what it does, and the upstream that it needs."""

    work: Callable[[Bench], Iterator[Row]]
    tls: bool = False
    pacing: Pacing | None = None


FAST = Pacing(100, 20)
LONG = Pacing(200, 50)

MEASURES = {
    "json": Measure(lambda bench: measures.full_load(bench, stream=False, most=3)),
    "stream": Measure(lambda bench: measures.full_load(bench, stream=True, most=3)),
    "latency": Measure(measures.latency),
    "refusals": Measure(measures.refusals),
    "paced": Measure(lambda bench: measures.paced(bench, most=1.6), pacing=FAST),
    "streams": Measure(measures.many_streams, pacing=LONG),
    "json-tls": Measure(lambda bench: measures.full_load(bench, stream=False, most=2.8), tls=True),
    "stream-tls": Measure(lambda bench: measures.full_load(bench, stream=True, most=2.8), tls=True),
    "paced-tls": Measure(lambda bench: measures.paced(bench, most=1.6), tls=True, pacing=FAST),
    "memory": Measure(measures.memory),
}
"""In this order; those that share an upstream, one after the other, share a gateway too."""

TAKES_MINUTES = ("memory",)
PROFILED = {"json": False, "stream": True, "json-tls": False, "stream-tls": True}
"""What can be profiled, and whether it is a stream."""


class Setup:
    """The servers that all measurements share, and, one after the other, those that only some do."""

    def __init__(self, folder: Path, runs: int, seconds: float) -> None:
        self._folder = folder
        self._runs = runs
        self._seconds = seconds
        self._stack = ExitStack()
        self._certificates = nginx.Certificates(folder)
        self._plain, self._tls = machine.free_ports(2)
        self._number = 0
        self.stores = Stores()

    def start(self) -> None:
        """Start what is shared."""
        self._stack.callback(self.stores.remove)
        self.stores.start()
        self._stack.callback(nginx.upstream(self._folder / "upstream", self._plain, self._tls, self._certificates).end)

    def end(self) -> None:
        """End it."""
        self._stack.close()

    @contextmanager
    def bench(self, *, tls: bool, pacing: Pacing | None) -> Iterator[Bench]:
        """Faregate, new, and nginx in front of one upstream."""
        self._number += 1
        folder = self._folder / f"part{self._number}"
        folder.mkdir()
        with ExitStack() as stack:
            port = self._tls if tls else self._plain
            paced = None
            if pacing is not None:
                (port,) = machine.free_ports(1)
                files = (self._certificates.certificate, self._certificates.key) if tls else None
                paced = Paced(port, pacing.events, pacing.milliseconds, files)
                stack.callback(paced.end)
            # By its name: that is what the certificate is for. It has no other address here than 127.0.0.1.
            base = f"https://localhost:{port}/api/v1" if tls else f"http://127.0.0.1:{port}/api/v1"
            (listen,) = machine.free_ports(1)
            proxy = nginx.proxy(folder / "proxy", listen, port, self._certificates if tls else None)
            stack.callback(proxy.end)
            faregate = Faregate(folder / f"faregate{self._number}", self.stores, base, self._certificates.authority)
            stack.callback(faregate.end)
            yield Bench(
                folder,
                faregate,
                Proxy(f"http://127.0.0.1:{listen}", proxy.pids),
                base,
                self.stores,
                self._runs,
                self._seconds,
                " over TLS" if tls else "",
                paced,
            )


def main() -> None:
    """Measure what the command line asks for."""
    options = _options()
    # So that what was started is ended then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))
    try:
        machine.check()
        if options.profile:
            profiler.check()
        machine.raise_open_files()
        measure(options)
    except machine.CannotMeasure as reason:
        sys.exit(str(reason))


def measure(options: argparse.Namespace) -> None:
    """Measure, print a table, keep the figures, draw them."""
    names = options.names or [name for name in MEASURES if name not in TAKES_MINUTES or options.long]
    if options.profile:
        names = [name for name in options.names or PROFILED if name in PROFILED]
    runs, seconds = (2, 1.0) if options.quick else (5, 5.0)
    with tempfile.TemporaryDirectory(prefix="faregate-bench-") as folder:
        setup = Setup(Path(folder), runs, seconds)
        try:
            setup.start()
            figures = Figures(machine.describe() | setup.stores.version())
            for (tls, pacing), group in _grouped(names).items():
                with setup.bench(tls=tls, pacing=pacing) as bench:
                    for name in group:
                        if options.profile:
                            profiler.profile(bench, name, bench.wrk(stream=PROFILED[name]), STACKS, RESULTS.parent)
                        else:
                            for row in MEASURES[name].work(bench):
                                figures.add(row)
        finally:
            setup.end()
    if not options.profile:
        figures.show()
        if not options.quick:
            kept = figures.keep(RESULTS)
            if picture.has_any(kept):
                PICTURE.write_text(picture.draw(kept))
            document.write(DOCUMENT, kept)


def _grouped(names: list[str]) -> dict[tuple[bool, Pacing | None], list[str]]:
    groups: dict[tuple[bool, Pacing | None], list[str]] = {}
    for name, one in MEASURES.items():
        if name in names:
            groups.setdefault((one.tls, one.pacing), []).append(name)
    return groups


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what the gateway costs beside nginx.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to measure: {', '.join(MEASURES)}; or all")
    parser.add_argument("--quick", action="store_true", help="two short runs of each, for a look; nothing is kept")
    parser.add_argument("--long", action="store_true", help="memory over a million requests as well")
    about = f"no figures: py-spy looks on ({', '.join(PROFILED)})"
    parser.add_argument("--profile", action="store_true", help=about)
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in MEASURES]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(MEASURES)}")
    return options


if __name__ == "__main__":
    main()
