"""What a generation costs: exact, from the prices and the tokens; and what an aborted one costs, by provider."""

from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal

from faregate.simulator.catalogue import Prices

PROVIDERS_THAT_STOP = (
    *("OpenAI", "Azure", "Anthropic", "Fireworks", "Mancer", "Recursal", "AnyScale", "Lepton", "OctoAI", "Novita"),
    *("DeepInfra", "Together", "Cohere", "Hyperbolic", "Infermatic", "Avian", "xAI", "Cloudflare", "SFCompute"),
    *("Nineteen", "Liquid", "Friendli", "Chutes", "DeepSeek"),
)
"""Leaving a stream ends the work and the bill (contract, 4)."""

PROVIDERS_THAT_RUN_ON = (
    *("Amazon Bedrock", "Groq", "Modal", "Google", "Google AI Studio", "Minimax", "HuggingFace", "Replicate"),
    *("Perplexity", "Mistral", "AI21", "Featherless", "Lynn", "Lambda", "Reflection", "SambaNova", "Inflection"),
    *("ZeroOneAI", "AionLabs", "Alibaba", "Nebius", "Kluster", "Targon", "InferenceNet"),
)
"""Leaving changes nothing: the whole completion is billed. So is it with any provider not named here."""

TINY = Decimal("1.2E-7")
"""The charge of `[[cost=tiny]]`, in dollars: JSON writes it with an exponent."""

_PICO = Decimal("0.000000000001")
_STOPS = frozenset(provider.casefold() for provider in PROVIDERS_THAT_STOP)


def stops_when_left(provider: str) -> bool:
    """Whether this provider stops, and stops billing, when the client of a stream leaves."""
    return provider.casefold() in _STOPS


def json_number(value: Decimal) -> bytes:
    """The number as JavaScript would write it, digit by digit: an exponent below a millionth."""
    if value == 0:
        return b"0"
    if abs(value) >= Decimal("0.000001"):
        return format(value.normalize(), "f").encode()
    sign, digits, exponent = value.normalize().as_tuple()
    head, *tail = (str(digit) for digit in digits)
    mantissa = f"{head}.{''.join(tail)}" if tail else head
    return f"{'-' if sign else ''}{mantissa}e{int(exponent) + len(digits) - 1}".encode()


@dataclass(frozen=True, slots=True)
class Tokens:
    """Native tokens, which are billed. `cached` and `written` are part of `prompt`, `reasoning` of `completion`."""

    prompt: int
    completion: int
    reasoning: int = 0
    cached: int = 0
    written: int = 0

    def up_to(self, generated: int) -> "Tokens":
        """The tokens of a generation that ended after `generated` completion tokens; reasoning comes first."""
        return Tokens(self.prompt, generated, min(self.reasoning, generated), self.cached, self.written)


@dataclass(frozen=True, slots=True)
class Terms:
    """How this generation is charged, beside the list prices: `dearer` multiplies them, `discount` is taken off."""

    byok: bool = False
    discount: Decimal = Decimal(0)
    dearer: Decimal = Decimal(1)
    tiny: bool = False


@dataclass(frozen=True, slots=True)
class Charge:
    """Dollars. `cost` leaves the OpenRouter balance; `upstream` is what the provider asks.

    The provider bills `upstream` to the customer directly under BYOK, and only then (contract, 2.1).
    """

    cost: Decimal
    upstream: Decimal
    upstream_prompt: Decimal
    upstream_completion: Decimal
    is_byok: bool = False

    @property
    def total(self) -> Decimal:
        """What the customer pays in the end, to OpenRouter and to the provider."""
        return self.cost + self.upstream if self.is_byok else self.cost


NOTHING = Charge(Decimal(0), Decimal(0), Decimal(0), Decimal(0))


def charge(prices: Prices, tokens: Tokens, terms: Terms) -> Charge:
    """The charge for these tokens. Rounded down to a pico-dollar, so that it never exceeds tokens times price."""
    read = prices.prompt if prices.cache_read is None else prices.cache_read
    write = prices.prompt if prices.cache_write is None else prices.cache_write
    reasoning = prices.completion if prices.reasoning is None else prices.reasoning
    plain = tokens.prompt - tokens.cached - tokens.written
    spoken = tokens.completion - tokens.reasoning
    prompt = terms.dearer * (plain * prices.prompt + tokens.cached * read + tokens.written * write)
    completion = terms.dearer * (spoken * prices.completion + tokens.reasoning * reasoning)
    upstream = prompt + completion + terms.dearer * prices.request
    if terms.byok:
        return Charge(Decimal(0), upstream, prompt, completion, is_byok=True)
    cost = (upstream * (1 - terms.discount)).quantize(_PICO, ROUND_DOWN)
    return Charge(min(cost, TINY) if terms.tiny else cost, upstream, prompt, completion)
