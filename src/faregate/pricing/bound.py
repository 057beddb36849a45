"""The most that a request can cost (contract openrouter, section 7): what its hold is made of."""

from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache

import msgspec

from faregate.pricing.body import PromptBound
from faregate.pricing.catalogue import Model, Rates

FEMTO_PER_NANO = 1_000_000

PAGE_FEMTO = 2_200_000_000_000
"""Reading a page of a document: $2 for 1,000 pages, and a tenth more where they are read in the US region."""


class NoPrice(ValueError):
    """The price of the model depends on what a router picks: nothing bounds it."""


class Ceiling(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """The prices that bounds were made of, in dollars per million tokens: what `provider.max_price` is to say.

    Without it OpenRouter may serve from an endpoint that is dearer than the listed one; with it, it answers 404.
    """

    prompt: Decimal
    completion: Decimal


class Bound(msgspec.Struct, frozen=True, gc=False):
    """A request costs at most `fixed_nano + cap * nano_per_output_token` nano-dollars with an output cap of `cap`.

    It has at most `prompt_tokens` tokens in its prompt. `output_limit` is the longest answer that the model gives,
    in tokens, None where that is not known. It holds under `ceiling`, None where no prices were looked at.
    """

    prompt_tokens: int
    fixed_nano: int
    nano_per_output_token: int
    output_limit: int | None
    ceiling: Ceiling | None = None


def bound_of(model: Model, prompt: PromptBound) -> Bound:
    """The bound of one model. Raises `NoPrice` for a router.

    It is about the model alone: searches, plugins and tools that run at OpenRouter have no bound.
    """
    if not model.priced:
        raise NoPrice(f"The price of {model.id} depends on the model that it picks.")
    tokens, context = prompt.prompt_tokens, model.context_length
    if context is not None and context < tokens:
        tokens = context
    tiers = model.tiers_for(tokens) if model.tiers else 0
    tariff = _tariff(model, tiers, prompt.images > 0, prompt.audio, prompt.long_cache)
    fixed = tariff.request + tokens * tariff.token + prompt.images * tariff.image + prompt.file_pages * PAGE_FEMTO
    return Bound(tokens, _nano(fixed), tariff.nano_per_output_token, tariff.output_limit, tariff.ceiling)


def dearest(every: Sequence[Bound]) -> Bound:
    """One bound over several candidates, whichever answers: the most of each part. There must be at least one."""
    if len(every) == 1:
        return every[0]
    ceilings = [bound.ceiling for bound in every if bound.ceiling is not None]
    limits = [bound.output_limit for bound in every]
    known = [limit for limit in limits if limit is not None]
    return Bound(
        prompt_tokens=max(bound.prompt_tokens for bound in every),
        fixed_nano=max(bound.fixed_nano for bound in every),
        nano_per_output_token=max(bound.nano_per_output_token for bound in every),
        output_limit=max(known) if len(known) == len(limits) else None,
        ceiling=_highest(ceilings) if ceilings else None,
    )


def _highest(ceilings: Sequence[Ceiling]) -> Ceiling:
    return Ceiling(max(one.prompt for one in ceilings), max(one.completion for one in ceilings))


class _Tariff(msgspec.Struct, frozen=True, gc=False):
    """What one model asks, in femto-dollars, whichever of its tiers applies; and what is sent along."""

    request: int
    token: int
    image: int
    nano_per_output_token: int
    output_limit: int | None
    ceiling: Ceiling


@lru_cache(maxsize=4_096)
def _tariff(model: Model, tiers: int, images: bool, audio: bool, long_cache: bool) -> _Tariff:
    rates = model.rates_in(tiers)
    limits = [model.max_completion_tokens, model.context_length and max(1, model.context_length - 1)]
    return _Tariff(
        request=max(rate.request for rate in rates),
        token=max(_input_price(rate, images, audio, long_cache) for rate in rates),
        image=max(rate.image for rate in rates),
        nano_per_output_token=_nano(max(_output_price(rate) for rate in rates)),
        output_limit=min((limit for limit in limits if limit is not None), default=None),
        ceiling=Ceiling(
            prompt=Decimal(max(rate.prompt for rate in rates)).scaleb(-9),
            completion=Decimal(max(rate.completion for rate in rates)).scaleb(-9),
        ),
    )


def _input_price(rates: Rates, images: bool, audio: bool, long_cache: bool) -> int:
    """Femto-dollars of the dearest token that such a prompt can have."""
    return max(
        rates.prompt,
        rates.input_cache_read,
        rates.input_cache_write,
        rates.input_cache_write_1h if long_cache else 0,
        rates.image_token if images else 0,
        rates.audio if audio else 0,
    )


def _output_price(rates: Rates) -> int:
    # A model that draws or speaks does so unasked, and bills those tokens as such.
    return max(rates.completion, rates.internal_reasoning, rates.image_output, rates.audio_output)


def _nano(femto: int) -> int:
    return -(-femto // FEMTO_PER_NANO)
