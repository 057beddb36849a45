"""The limits that a request meets: its claims on the counters, and the answer when one of them does not fit."""

from collections.abc import Sequence
from typing import NamedTuple
from zoneinfo import ZoneInfo

from faregate.gateway.errors import ApiError
from faregate.ledger.forms import Ask, ClaimLine, Claims, Form
from faregate.ledger.port import Counter, Refused
from faregate.policy.explain import refusal_sentence
from faregate.policy.model import Enforcement, Meter, Policy, Scope, Window
from faregate.policy.rulebook import Resolution, Shape
from faregate.pricing.bound import Bound
from faregate.pricing.estimate import EXPECTED_OUTPUT_TOKENS

# A request that breaks several limits is refused by the one that lasts longest: the others' reset would not help.
_LASTING = {
    Window.TOTAL: 0,
    Window.MONTH: 1,
    Window.WEEK: 2,
    Window.DAY: 3,
    Window.HOUR: 4,
    Window.MINUTE: 5,
    None: 6,
}
_SECONDS = {Window.MINUTE: 60, Window.HOUR: 3_600, Window.DAY: 86_400, Window.WEEK: 604_800}
_UNITS = {Meter.REQUESTS: "requests", Meter.TOKENS: "tokens", Meter.USD: "nano-usd", Meter.CONCURRENT: "requests"}

RETRY_BUSY = 2
"""Seconds after which to try again where only running requests are in the way."""
RETRY_NEVER = 86_400
"""Where no reset will help, such as of a total: an administrator may change the limit any day."""


MOST_REMEMBERED = 16_384
"""People, each with models, whose terms are remembered."""

_PLACES = {Meter.REQUESTS: 0, Meter.CONCURRENT: 0, Meter.TOKENS: 1, Meter.USD: 2}
"""Where `_asked` has what a request asks of each meter."""

_ONE = Ask(1)


class _Terms(NamedTuple):
    counters: tuple[Counter, ...]
    resolution: Resolution
    form: Form[ClaimLine]


class Terms:
    """What each counter asks of a request: worked out once for as long as neither counters nor rules change."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, tuple[str, ...]], _Terms] = {}

    def claims(
        self,
        user_id: str,
        models: tuple[str, ...],
        counters: tuple[Counter, ...],
        resolution: Resolution,
        asked: Bound,
    ) -> Claims:
        """The claims on `counters` of a request that asks for `asked`, those that last longest first.

        Counters that no limit of the person's own policy is about are held as well, without a limit: others may be
        limited by them, such as by the pool of a group.
        """
        key = user_id, models
        known = self._known.get(key)
        if known is None or known.counters is not counters or known.resolution is not resolution:
            if len(self._known) >= MOST_REMEMBERED:
                self._known.clear()
            known = self._known[key] = _Terms(counters, resolution, _form(counters, resolution))
        return Claims(known.form, _asked(resolution.policy, asked))


def _form(counters: Sequence[Counter], resolution: Resolution) -> Form[ClaimLine]:
    enforce = resolution.policy.enforcement is not Enforcement.SHADOW
    lines = []
    for counter in sorted(counters, key=lambda counter: _LASTING[counter.window]):
        shape = Shape(counter.scope, counter.meter, counter.window, counter.models)
        limit = resolution.limit_for(shape, counter.scope_id)
        lines.append(ClaimLine(counter, _PLACES[counter.meter], limit, enforce))
    return Form(lines)


def _asked(policy: Policy, bound: Bound) -> tuple[Ask, Ask, Ask]:
    """What a request asks: one of what counts requests, whatever else it asks; its tokens; its nano-dollars."""
    if policy.enforcement is Enforcement.SOFT:
        tokens = Ask(bound.prompt_tokens + EXPECTED_OUTPUT_TOKENS)
    else:
        tokens = Ask(bound.prompt_tokens, 1)
    return _ONE, tokens, Ask(bound.fixed_nano, bound.nano_per_output_token)


def over_limit(refused: Refused, now: float, zone: ZoneInfo, contact: str) -> ApiError:
    """The answer to a request that does not fit, with the headers of the IETF's RateLimit draft."""
    counter = refused.counter
    resets_at = float(counter.ends) if counter.ends else refused.frees_at
    message = refusal_sentence(
        scope=counter.scope,
        meter=counter.meter,
        window=counter.window,
        used=refused.used,
        held=refused.held,
        limit=refused.limit,
        needed=refused.needed,
        resets_at=resets_at,
        zone=zone,
        models=counter.models,
        group=counter.scope_id if counter.scope is Scope.GROUP else None,
        contact=contact,
    )
    retry = _retry_after(refused, now, resets_at)
    name = rule_in_words(counter).replace("/", "-").partition(" ")[0]
    left = max(0, refused.limit - refused.used - refused.held)
    policy = f'"{name}";q={refused.limit};qu="{_UNITS[counter.meter]}"'
    if counter.ends:
        policy += f";w={counter.ends - counter.starts}"
    elif counter.window is Window.MINUTE:
        policy += f";w={_SECONDS[Window.MINUTE]}"
    is_rate = counter.window is Window.MINUTE
    return ApiError(
        429,
        message,
        "rate_limit_exceeded" if is_rate else "quota_exceeded",
        "rate_limit_exceeded" if is_rate else name.replace("-", "_"),
        headers={
            "retry-after": str(retry),
            "ratelimit-policy": policy,
            "ratelimit": f'"{name}";r={left};t={retry}',
        },
    )


def rule_in_words(counter: Counter) -> str:
    """A limit in a few words, for records: `user/usd/day on anthropic/*`."""
    parts = [counter.scope.value, counter.meter.value]
    if counter.window is not None:
        parts.append(counter.window.value)
    words = "/".join(parts)
    return f"{words} on {', '.join(counter.models)}" if counter.models else words


def _retry_after(refused: Refused, now: float, resets_at: float | None) -> int:
    if refused.needed > refused.limit:
        return RETRY_NEVER
    if refused.used + refused.needed <= refused.limit and refused.counter.meter is not Meter.REQUESTS:
        return RETRY_BUSY
    if resets_at is None:
        return RETRY_NEVER
    # Rounded up: a second too early would be refused again.
    return max(1, int(resets_at - now) + 1)
