"""The text of `faregate simulator --help`, written from the tables that the simulator obeys."""

from decimal import Decimal
from textwrap import fill

from faregate.simulator.billing import PROVIDERS_THAT_RUN_ON, PROVIDERS_THAT_STOP
from faregate.simulator.catalogue import Model, price_text
from faregate.simulator.markers import TABLE, Marker
from faregate.simulator.models import MODELS

_WIDTH = 100
_INDENT = "  "

_INTRODUCTION = """\
An OpenRouter on this machine: no network, no key of yours, no money. It serves, under /api/v1 and /v1,
POST /chat/completions, GET /models, GET /generation?id=, GET /key and GET /activity?date= as OpenRouter does, and
besides:

  GET  /_simulator/bills   every generation and what OpenRouter would have charged for it, newest last
  GET  /_simulator/stats   requests, in_flight, max_in_flight of chat
  GET  /_simulator/last    headers and body of the last 50 chat requests, newest last
  POST /_simulator/keys    {"key": "sk-or-a", "error": "402-credits"}: chat with this key gets this error;
                           {"key": "sk-or-a", "in_flight": 2, "retry_after": 1}: no more than two at once
  POST /_simulator/reset   forget all of these (bills are kept without bound until then)

Any key that begins with sk-or- is accepted. sk-or-v1-bad is not (401), and one with "limit" in it has used up
its limit (403). One that begins with sk-or-v1-mgmt- is a management key: it cannot chat, and /activity answers to such
a key alone: it adds up the bills of the last 30 completed UTC days, by day, model and provider. Bills are in dollars,
as exact decimal strings; total is cost plus, under BYOK, upstream_cost. The same request costs the same, always;
/generation knows an id a while after its answer ended, and never if it failed. An answer without a pace is written at
once, so it is complete, and billed, however early one leaves."""

_MARKERS = """\
MARKERS, in the text of the last message; several can be combined, such as
"Hello [[tokens=300]] [[pace=0.02]]". One that does not exist is refused (400)."""

_ABORTS = """\
WHO LEAVES A STREAM pays, with these providers, for the tokens generated so far (nothing before the first):"""

_RUNS_ON = """\
With these, with any that is not named here, and without streaming: for the whole answer."""


def _paragraph(names: tuple[str, ...]) -> str:
    return fill(", ".join(names) + ".", _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)


def _million(price: Decimal) -> str:
    return price_text(price.scaleb(6)) if price >= 0 else "?"


def _model(model: Model) -> str:
    prices = f"${_million(model.prices.prompt)} / ${_million(model.prices.completion)}"
    about = f"\n{_INDENT * 3}{model.about}" if model.about else ""
    return f"{_INDENT}{model.id:<36}{prices:<18}{model.provider}{about}"


def _marker(marker: Marker) -> str:
    written = f"[[{marker.example}]]"
    return fill(
        marker.meaning,
        _WIDTH,
        initial_indent=f"{_INDENT}{written:<26}",
        subsequent_indent=" " * (len(_INDENT) + 26),
        break_on_hyphens=False,
    )


def _guide() -> str:
    models = "\n".join(_model(model) for model in MODELS)
    markers = "\n\n".join(
        "\n".join([f"{heading}:", *(_marker(marker) for marker in group)]) for heading, group in TABLE
    )
    return "\n\n".join(
        (
            _INTRODUCTION,
            f"MODELS, dollars per million prompt / completion tokens, provider:\n\n{models}",
            _MARKERS,
            markers,
            f"{_ABORTS}\n\n{_paragraph(PROVIDERS_THAT_STOP)}",
            f"{_RUNS_ON}\n\n{_paragraph(PROVIDERS_THAT_RUN_ON)}",
        )
    )


GUIDE = _guide()
"""What `faregate simulator --help` prints: every route, model and marker."""
