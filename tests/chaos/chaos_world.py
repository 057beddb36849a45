"""Four gateways, each with its own way to one Redis, in front of one simulator; and everything that may happen to them.

One rule, from the promise that any *one* of them may be lost at any moment: Redis loses its data only when nobody has
to take over anything from a gateway that was killed, and a gateway is killed only when all have brought their holds
into the counters that there are.
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import redis
from commands import Gateway, Simulator
from fleet import defaults, running, sharing, start_all
from redis_eyes import Eyes, clock
from redis_proxy import RedisProxy
from redis_server import RedisServer

NODES = 4
PATIENCE = 60.0
"""Seconds for what takes a lease and some rounds of its heirs."""


class World:
    """Use it in a `with`: whatever happens, no process of it is left."""

    def __init__(
        self,
        folder: Path,
        chance: random.Random,
        policy: dict[str, object],
        *,
        nodes: int = NODES,
        killed_at_once: int = 2,
    ) -> None:
        """So many gateways, at most so many of them killed at once."""
        self.events: Counter[str] = Counter()
        """What it survived, by kind."""
        self.said: list[str] = []
        """The same in order, with the time of day, to be compared with the logs."""
        self._folder = folder
        self._chance = chance
        self._policy = policy
        self._nodes = nodes
        self._killed_at_once = killed_at_once
        self._ends = ExitStack()

    def __enter__(self) -> "World":
        self.redis = self._ends.enter_context(running(RedisServer()))
        self.eyes = Eyes(self.redis)
        self._ends.callback(self.eyes.close)
        self.simulator = Simulator(self._folder, "--generation-delay", "0.1")
        self._ends.callback(self.simulator.stop)
        self.proxies = [RedisProxy(self.redis.port) for _ in range(self._nodes)]
        for proxy in self.proxies:
            proxy.start()
            self._ends.callback(proxy.stop)
        self.gateways = start_all(self._start, self._nodes, **self._policy)
        self._ends.callback(self._end_gateways)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            self.redis.resume()
        self._ends.close()

    def urls(self) -> list[str]:
        """Where the gateways are at the moment. One that was killed is still called for a while."""
        return [gateway.url for gateway in self.gateways]

    # What happens

    def pause(self) -> None:
        """Redis says nothing for a while."""
        seconds = self._chance.choice((0.1, 0.3, 1.0, 3.0)) * self._chance.uniform(0.5, 1.0)
        self._note("pause", f"{seconds:.2f} s")
        self.redis.pause()
        time.sleep(seconds)
        self.redis.resume()

    def drop(self) -> None:
        """Connections to Redis are reset."""
        some = self._some()
        self._note("drop", f"of {some}")
        for number in some:
            self.proxies[number].drop_all()

    def delay(self) -> None:
        """Replies come late: in time, or not."""
        some, seconds = self._some(), self._chance.uniform(0.005, 0.08)
        self._note("delay", f"{seconds:.3f} s of {some}")
        for number in some:
            self.proxies[number].delay(seconds)
        time.sleep(self._chance.uniform(0.2, 1.5))
        for number in some:
            self.proxies[number].delay(0)

    def flush(self) -> None:
        """Redis forgets everything."""
        self._note("flush")
        self.redis.flush()

    def restart(self) -> None:
        """Redis is killed, and another, empty one comes in its place."""
        self._note("restart")
        self.redis.kill()
        time.sleep(self._chance.uniform(0.0, 0.5))
        self.redis.start()

    def kill(self) -> None:
        """Gateways are killed, and others come in their place a moment later."""
        self._until(self._everybody_is_in, "the nodes do not bring their holds into the counters")
        some = self._some()[: self._killed_at_once]
        self._note("kill", f"of {some}")
        for number in some:
            self.gateways[number].process.kill()
            self._keep_log(self.gateways[number])
        time.sleep(self._chance.uniform(0.0, 1.0))
        with ThreadPoolExecutor(self._nodes) as starting:
            for number, gateway in zip(some, starting.map(self._start, some), strict=True):
                self.gateways[number] = gateway

    def set_limits(self, limits: list[dict[str, object]]) -> None:
        """Let all nodes have other limits. Returns once each knows them."""
        self._policy = {**self._policy, "limits": limits}
        self.gateways[0].set_policy(**self._policy)
        wanted = self.gateways[0].admin("GET", "/policies").json()
        for gateway in self.gateways:
            self._until(
                lambda asked=gateway: asked.admin("GET", "/policies").json() == wanted, "a node does not learn limits"
            )

    # What is waited for

    def nothing_is_left_behind(self) -> bool:
        """Whether nobody has to take over anything from a node that was killed."""
        return all(not (trace.holds or trace.rows) for trace in self.eyes.traces() if not self._is_alive(trace.node))

    def await_heirs(self, meanwhile: Callable[[], None]) -> None:
        """Do `meanwhile` again and again until nothing of the dead is left."""
        deadline = time.monotonic() + PATIENCE
        while not self.nothing_is_left_behind():
            assert time.monotonic() < deadline, f"nobody takes over what is left: {self._dead_traces()}"
            meanwhile()

    def await_quiet(self) -> None:
        """Return once all requests are settled and written, by whoever has to."""
        self._until(lambda: not self._unquiet(), "it does not become quiet", self._unquiet)

    def _unquiet(self) -> list[str]:
        try:
            waiting = [f"{t.node} has {t.holds} holds, {t.rows} rows" for t in self.eyes.traces() if t.holds or t.rows]
        except redis.ConnectionError as error:
            return [str(error)]
        pending = self.gateways[0].usage(status="pending", limit=1000)
        return [*waiting, *([f"{len(pending)} records are pending"] if pending else [])]

    def _everybody_is_in(self) -> bool:
        joined = self.eyes.joined()
        return all(any(_is_of(node, gateway) for node in joined) for gateway in self.gateways)

    def _is_alive(self, node: str) -> bool:
        return any(_is_of(node, gateway) for gateway in self.gateways)

    def _dead_traces(self) -> list[object]:
        return [t for t in self.eyes.traces() if (t.holds or t.rows) and not self._is_alive(t.node)]

    def _until(self, condition: Callable[[], bool], otherwise: str, details: Callable[[], object] = lambda: "") -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"{otherwise} {details()}"
            time.sleep(0.05)

    def _some(self) -> list[int]:
        """One of the nodes, mostly, or several."""
        several = self._chance.choice((1, 1, 1, 2, self._nodes))
        return self._chance.sample(range(self._nodes), several)

    def _note(self, kind: str, more: str = "") -> None:
        self.events[kind] += 1
        self.said.append(f"{clock()} {kind} {more}".rstrip())

    def _start(self, number: int) -> Gateway:
        folder = self._folder / f"node{number}"
        folder.mkdir(exist_ok=True)
        # Redis may be silent just then.
        settings = defaults(self.simulator) | self._shared(number) | {"RECONCILE_DELAYS": "0.2,0.3,0.5,1"}
        return Gateway.start(folder, settings, state=None)

    def _shared(self, number: int) -> dict[str, str]:
        """The Redis and the database of a gateway."""
        return sharing(self.proxies[number].url, self._folder)

    def _end_gateways(self) -> None:
        for gateway in self.gateways:
            gateway.process.kill()
            self._keep_log(gateway)

    def _keep_log(self, gateway: Gateway) -> None:
        (self._folder / f"{gateway.process.pid}.log").write_text(gateway.process.output)


def _is_of(node: str, gateway: Gateway) -> bool:
    # The id of a node is host, process and a random number.
    return node.split("-")[-2] == str(gateway.process.pid)
