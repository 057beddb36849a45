"""What people read inside the chat when a limit or a rule says no. Plain text, one to four sentences."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from zoneinfo import ZoneInfo

from faregate.policy.model import Meter, Policy, Scope, Window
from faregate.policy.money import format_usd
from faregate.policy.patterns import is_allowed

DEFAULT_CONTACT = "your administrator"

_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_ADJECTIVES = {
    Window.HOUR: "hourly ",
    Window.DAY: "daily ",
    Window.WEEK: "weekly ",
    Window.MONTH: "monthly ",
    Window.TOTAL: "total ",
}
_LONGEST_MODEL = 100
_MOST_PATTERNS = 8


def format_amount(meter: Meter, amount: int) -> str:
    """An amount on a counter of `meter` in words: "$2.50", "1,000 tokens", "1 request"."""
    if meter is Meter.USD:
        return format_usd(amount)
    noun = "token" if meter is Meter.TOKENS else "request"
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def format_moment(at: float, zone: ZoneInfo, *, seconds: bool = False) -> str:
    """An instant (seconds since the epoch) as the clock in `zone` shows it, in no language but English."""
    local = datetime.fromtimestamp(at, zone)
    clock = f"{local:%H:%M:%S}" if seconds else f"{local:%H:%M}"
    day = f"{_WEEKDAYS[local.weekday()]} {local.day} {_MONTHS[local.month - 1]} {local.year}"
    return f"{day} at {clock} ({zone.key})"


def refusal_sentence(
    *,
    scope: Scope,
    meter: Meter,
    window: Window | None,
    used: int,
    held: int,
    limit: int,
    needed: int,
    resets_at: float | None,
    zone: ZoneInfo,
    models: Sequence[str] = (),
    group: str | None = None,
    contact: str = DEFAULT_CONTACT,
) -> str:
    """Which limit refused a request, how much of it is used, when it frees, and whom to ask.

    Amounts are as on the counter (nano-dollars, tokens, requests); `needed` is the least that the request asks.
    `resets_at` (seconds since the epoch) is the end of a calendar window, or when a sliding minute has room.
    """
    sentences = [
        _state(_title(scope, meter, window, limit, models, group), meter, window, used, held, limit, needed),
        *_outlook(meter, window, used, held, limit, needed, resets_at, zone),
        f"If you need more, ask {contact or DEFAULT_CONTACT}.",
    ]
    return " ".join(sentences)


def model_not_allowed_sentence(model: str, policy: Policy, *, contact: str = DEFAULT_CONTACT) -> str:
    """Why a person may not use `model`: their policy allows others, or denies it."""
    allowed = ""
    # Where `deny` is what says no, a list of what is allowed would only contradict it.
    if policy.allow and not is_allowed(replace(policy, deny=()), model):
        more = ", ..." if len(policy.allow) > _MOST_PATTERNS else ""
        allowed = f" It allows {', '.join(policy.allow[:_MOST_PATTERNS])}{more}."
    return (
        f'The model "{_short(model)}" is not allowed by your policy "{policy.name}".{allowed}'
        f" Choose another model, or ask {contact or DEFAULT_CONTACT}."
    )


def model_unknown_sentence(model: str) -> str:
    """Why a model that the catalogue does not know, or has no price for, cannot be used."""
    return (
        f'The model "{_short(model)}" is not in the price list, so what it costs cannot be checked against your '
        "limits. Choose a model from the list of models."
    )


def _title(
    scope: Scope, meter: Meter, window: Window | None, limit: int, models: Sequence[str], group: str | None
) -> str:
    owner = "Your" if scope is Scope.USER else "The"
    adjective = "" if window is None else _ADJECTIVES.get(window, "")
    title = f"{owner} {adjective}limit of {format_amount(meter, limit)}"
    if meter is Meter.CONCURRENT:
        title += " at once"
    elif window is Window.MINUTE:
        title += " a minute"
    if models:
        title += f" on {', '.join(models)}"
    if scope is Scope.EVERYONE:
        title += " for everyone together"
    elif scope is Scope.GROUP:
        title += f' of the group "{group}"' if group else " of your group"
    return title


def _state(title: str, meter: Meter, window: Window | None, used: int, held: int, limit: int, needed: int) -> str:
    if limit == 0:
        return f"{title} leaves nothing to use."
    spent = ", and ".join(_spent(meter, window, used, held))
    left = limit - used - held
    if left <= 0:
        return f"{title} is used up: {spent}."
    verb = "is" if meter is Meter.USD or left == 1 else "are"
    return (
        f"{title} leaves too little for this request: {spent}, so {format_amount(meter, left)} {verb} left,"
        f" and this request needs at least {format_amount(meter, needed)}."
    )


def _spent(meter: Meter, window: Window | None, used: int, held: int) -> Iterator[str]:
    """What is used and what is held, each as a clause."""
    if meter is Meter.CONCURRENT:
        yield f"{used + held:,} {_be(used + held)} running"
        return
    if meter is Meter.REQUESTS:
        # A request counts from its admission, whether or not it still runs.
        recently = " in the last minute" if window is Window.MINUTE else ""
        yield f"{used + held:,} {'was' if used + held == 1 else 'were'} made{recently}"
        return
    tokens = meter is Meter.TOKENS
    if used or not held:
        yield f"{used:,} {_be(used)} used" if tokens else f"{format_usd(used)} is spent"
    if held:
        amount = f"{held:,} {_be(held)}" if tokens else f"{format_usd(held)} is"
        yield f"{amount} held by requests that are still running"


def _outlook(
    meter: Meter,
    window: Window | None,
    used: int,
    held: int,
    limit: int,
    needed: int,
    resets_at: float | None,
    zone: ZoneInfo,
) -> Iterator[str]:
    """When this request could be made, as far as that is known."""
    if limit == 0:
        return
    if needed > limit:
        yield "It would not fit into an unused limit either: send less text or fewer tools, or choose a cheaper model."
        return
    if meter is Meter.CONCURRENT:
        yield f"Try again when {'it' if used + held == 1 else 'one of them'} has ended."
        return
    if held and meter is not Meter.REQUESTS and used + needed <= limit:
        yield "It fits once those have ended: try again in a moment."
    if window is Window.MINUTE:
        if resets_at is None:
            yield "Try again in a minute."
        else:
            yield f"There is room again on {format_moment(resets_at, zone, seconds=True)}."
    elif resets_at is None:
        yield "It does not reset."
    else:
        yield f"It resets on {format_moment(resets_at, zone)}."


def _be(count: int) -> str:
    return "is" if count == 1 else "are"


def _short(model: str) -> str:
    """A name that a caller sent, fit to be shown."""
    visible = "".join(character for character in model if character.isprintable())
    return visible if len(visible) <= _LONGEST_MODEL else f"{visible[:_LONGEST_MODEL]}..."
