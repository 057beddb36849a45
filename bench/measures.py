"""What is measured, one function for each. In every run nginx and Faregate follow one another."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TypeVar

import answers
import machine
import posts
import rate
import streams
from figures import Row
from paced import Paced
from systems import SPENT, STAFF, Faregate, Proxy, Stores, System
from wrk import Load, Wrk

PACED_STREAMS = 300
PACED_RAMP = 0.3
MANY_STREAMS = 2_000
MANY_RAMP = 2.0
"""Seconds in which the streams begin one after the other."""

MANY_REST = 0.15
"""Seconds between two looks at what has arrived: three events of each stream."""

FIRST_READING = 100_000
LAST_READING = 1_000_000
MOST_SECONDS = 3_600
"""The most that the requests between the two may take."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bench:
    """What every measurement has: one upstream, its direct address, Faregate and nginx in front of it."""

    folder: Path
    faregate: Faregate
    proxy: Proxy
    direct: str
    stores: Stores
    runs: int
    seconds: float
    suffix: str = ""
    paced: Paced | None = None

    @property
    def systems(self) -> tuple[System, System]:
        return self.proxy, self.faregate

    def wrk(self, *, stream: bool, group: str = STAFF) -> Wrk:
        """The load of the people of `group`."""
        folder = self.folder / f"wrk-{group}-{'stream' if stream else 'json'}{self.suffix}"
        return Wrk(folder, _headers(group, stream=stream), answers.request_body(stream=stream))

    def requests(self, *, stream: bool) -> Path:
        """The same requests, for a load with a clock."""
        file = self.folder / f"requests-{stream}{self.suffix}"
        return posts.write(file, _headers(STAFF, stream=stream), answers.request_body(stream=stream))


def full_load(bench: Bench, *, stream: bool, most: float) -> Iterator[Row]:
    """As many requests as go."""
    wrk = bench.wrk(stream=stream)
    name = ("stream" if stream else "json") + bench.suffix
    for system in bench.systems:
        _chat(wrk, system, 1)
        system.settle()
    used: dict[str, list[float]] = {"nginx": [], "faregate": []}
    speed: dict[str, list[float]] = {"nginx": [], "faregate": []}
    stores: dict[str, list[float]] = {"Redis": [], "PostgreSQL": []}
    seen: Counter[str] = Counter()
    all_of_them = 0
    for _ in range(bench.runs):
        for system in bench.systems:
            before = bench.stores.cpu()
            answered, seconds = _measured(system, partial(_chat, wrk, system, bench.seconds))
            used[system.name].append(_micro(seconds, answered.requests))
            speed[system.name].append(answered.per_second)
            seen[f"answered with an error by {system.name}"] += answered.refused
            seen[f"broken off by {system.name}"] += answered.broken
            if system.name == "faregate":
                all_of_them += answered.requests
                for store, after in bench.stores.cpu().items():
                    stores[store].append(_micro(after - before[store], answered.requests))
    notes, failed = _notes(seen), _failed(seen) / all_of_them
    yield Row(name, "CPU us/request", used["faregate"], used["nginx"], most=most, failed=failed, notes=notes)
    yield Row(f"{name}, at full load", "requests/s", speed["faregate"], speed["nginx"])
    for store, figures in stores.items():
        yield Row(f"{name}, {store} for it", "CPU us/request", figures)


def paced(bench: Bench, most: float) -> Iterator[Row]:
    """300 streams with an event in 20 ms."""
    used, _, seen = _streams(bench, PACED_STREAMS, PACED_RAMP, 0)
    yield Row(
        f"paced{bench.suffix}",
        "CPU us/event",
        used["faregate"],
        used["nginx"],
        most=most,
        failed=_failed(seen) / PACED_STREAMS / bench.runs,
        notes=_notes(seen),
    )


def many_streams(bench: Bench) -> Iterator[Row]:
    """2,000 streams with 20 events a second."""
    used, found, seen = _streams(bench, MANY_STREAMS, MANY_RAMP, MANY_REST)
    failed = _failed(seen) / MANY_STREAMS / bench.runs
    assert bench.paced is not None
    per_second = MANY_STREAMS * 1000 / bench.paced.milliseconds
    share = {name: [of_one * per_second / 1e4 for of_one in figures] for name, figures in used.items()}
    name = f"{MANY_STREAMS:,} streams"
    yield Row(
        name,
        "% of one core",
        share["faregate"],
        share["nginx"],
        most=100,
        of_figure=True,
        failed=failed,
        notes=_notes(seen),
    )
    for what, unit, most in (("lost", "events", 0), ("out of order", "events", 0), ("behind their plan", "s", None)):
        figures = {system: [of_one[what] for of_one in runs] for system, runs in found.items()}
        yield Row(
            f"{name}, {what}",
            unit,
            figures["faregate"],
            figures["nginx"],
            most=most,
            of_figure=True,
            divided=False,
            failed=failed,
        )


def latency(bench: Bench) -> Iterator[Row]:
    """What a request waits longer than at upstream itself, at half of what Faregate can do here."""
    asked, wrk = bench.requests(stream=False), bench.wrk(stream=False)
    _chat(wrk, bench.faregate, 1)
    per_second = _chat(wrk, bench.faregate, bench.seconds).per_second / 2
    bench.faregate.settle()
    added: dict[tuple[str, str], list[float]] = {}
    seen: Counter[str] = Counter()
    all_of_them = 0.0
    for _ in range(bench.runs):
        direct = rate.run(asked, f"{bench.direct}/chat/completions", per_second, bench.seconds)
        for system in bench.systems:
            through = rate.run(asked, f"{system.url}/v1/chat/completions", per_second, bench.seconds)
            system.settle()
            seen[f"failed at {system.name}"] += int(through["failed"])
            all_of_them += through["sent"] if system.name == "faregate" else 0
            for quantile in ("p50", "p99"):
                added.setdefault((system.name, quantile), []).append(through[quantile] - direct[quantile])
    notes = [f"at {per_second:,.0f} requests/s", *_notes(seen)]
    for quantile, most in (("p50", 1.0), ("p99", 5.0)):
        yield Row(
            f"added latency, {quantile}",
            "ms",
            added["faregate", quantile],
            added["nginx", quantile],
            most=most,
            of_figure=True,
            divided=False,
            failed=_failed(seen) / all_of_them,
            notes=notes,
        )


def refusals(bench: Bench) -> Iterator[Row]:
    """A request of somebody who may not, beside one that is admitted."""
    kinds = {"refused": bench.wrk(stream=False, group=SPENT), "admitted": bench.wrk(stream=False)}
    used: dict[str, list[float]] = {"refused": [], "admitted": []}
    wrong = all_of_them = 0
    for run in range(bench.runs + 1):
        for kind, wrk in kinds.items():
            work = partial(_chat, wrk, bench.faregate, bench.seconds if run else 1)
            answered, seconds = _measured(bench.faregate, work)
            # The first run is for warmth.
            if run:
                used[kind].append(_micro(seconds, answered.requests))
                all_of_them += answered.requests
                wrong += answered.requests - answered.refused if kind == "refused" else answered.refused
    notes = [f"{wrong} requests of the wrong kind"] if wrong else []
    yield Row(
        "refusal",
        "CPU us/request",
        used["refused"],
        used["admitted"],
        "admitted",
        most=1,
        failed=wrong / all_of_them,
        notes=notes,
    )


def memory(bench: Bench) -> Iterator[Row]:
    """Resident size, from the 100,000th to the 1,000,000th request."""
    wrk = bench.wrk(stream=False)
    readings, answered, speed = [], 0, 1000.0
    deadline = monotonic() + MOST_SECONDS
    for goal in (FIRST_READING, LAST_READING):
        while answered < goal:
            if monotonic() > deadline:
                raise machine.CannotMeasure(f"Only {answered:,} requests were answered within {MOST_SECONDS:,} s.")
            some = _chat(wrk, bench.faregate, min(60, max(1, (goal - answered) / speed)))
            answered += some.requests
            speed = some.per_second
        bench.faregate.settle()
        readings.append(bench.faregate.resident() / 2**20)
    first, last = readings
    yield Row(
        f"resident size at the {LAST_READING:,}th request",
        "MiB",
        [last],
        [first],
        f"at the {FIRST_READING:,}th",
        most=1.05,
    )


def _streams(
    bench: Bench, count: int, ramp: float, rest: float
) -> tuple[dict[str, list[float]], dict[str, list[dict[str, float]]], Counter[str]]:
    """CPU microseconds per event and what arrived, by system and run; what went wrong, by what it was and where."""
    assert bench.paced is not None
    arguments = (bench.paced.events, bench.paced.milliseconds, count, ramp, rest)
    asked = bench.requests(stream=True)
    used: dict[str, list[float]] = {"nginx": [], "faregate": []}
    found: dict[str, list[dict[str, float]]] = {"nginx": [], "faregate": []}
    seen: Counter[str] = Counter()
    for _ in range(bench.runs):
        for system in bench.systems:
            url = f"{system.url}/v1/chat/completions"
            arrived, seconds = _measured(system, partial(streams.run, asked, url, *arguments))
            used[system.name].append(_micro(seconds, arrived["arrived"]))
            found[system.name].append(arrived)
            for what, number in arrived.items():
                if what not in ("arrived", "behind their plan"):
                    seen[f"{what} by {system.name}"] += int(number)
    return used, found, seen


def _measured(system: System, work: Callable[[], T]) -> tuple[T, float]:
    """What came of `work`, and the seconds of CPU that `system` used for it, until all is done."""
    before = system.cpu()
    result = work()
    system.settle()
    return result, system.cpu() - before


def _chat(wrk: Wrk, system: System, seconds: float) -> Load:
    return wrk.run(f"{system.url}/v1/chat/completions", seconds)


def _headers(group: str, *, stream: bool) -> list[dict[str, str]]:
    # Upstream is nginx: it does not read the body, and tells by this what to answer. Faregate sends the same.
    accept = "text/event-stream" if stream else "application/json"
    return [person | {"Accept": accept} for person in answers.people(group)]


def _micro(seconds: float, count: float) -> float:
    """Microseconds for each of `count`."""
    if not count:
        raise machine.CannotMeasure("Nothing was answered at all.")
    return seconds / count * 1e6


def _failed(seen: Counter[str]) -> int:
    """What went wrong in Faregate."""
    return sum(number for what, number in seen.items() if what.endswith("faregate"))


def _notes(seen: Counter[str]) -> list[str]:
    return [f"{what}: {number:,}" for what, number in seen.items() if number]
