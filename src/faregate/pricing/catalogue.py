"""OpenRouter's list of models with prices, as fetched from `/models` (contract openrouter, section 7).

Prices are integers of femto-dollars (1e-15 $) per token or unit, rounded up, so that sums are exact and never under.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, InvalidOperation, localcontext
from types import MappingProxyType
from typing import Any, Self

import msgspec

FEMTO = 10**15
"""Femto-dollars in a dollar: the unit of prices."""

DYNAMIC_VARIANTS = frozenset({"nitro", "floor", "exacto", "online"})
"""Variants that choose among the endpoints of a model (or, `online`, add to it) and are not listed themselves.

`nitro` may pick a priority tier that is dearer than the list says. Its bound is the model's own; it is kept true by
sending the prices that it was made of as `provider.max_price` (`bound.Ceiling`).
"""

_DEAREST = Decimal(1_000_000)
"""Dollars for one token or unit: a price above is not a price but a mistake."""

_LONGEST_PRICE = 64
_LONGEST_ID = 200


class CatalogueError(ValueError):
    """The answer of `/models` cannot be used: it is not a list of models, or none of them has a price."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Prices in femto-dollars: per token, or, where it says so, per request or image.

    A field of `/models` that is absent is 0: not priced.
    """

    prompt: int = 0
    completion: int = 0
    request: int = 0
    """Per request."""
    image: int = 0
    """Per image in the prompt."""
    image_token: int = 0
    image_output: int = 0
    audio: int = 0
    audio_output: int = 0
    internal_reasoning: int = 0
    input_cache_read: int = 0
    input_cache_write: int = 0
    input_cache_write_1h: int = 0


_PRICE_FIELDS = tuple(Rates.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class Tier:
    """The rates that can apply to prompts of more than `above` tokens (`pricing.overrides`)."""

    above: int
    rates: Rates


@dataclass(frozen=True, slots=True)
class Model:
    """A model as listed. `priced` False: a router, whose price depends on what it picks; no bound can be given.

    `context_length` and `max_completion_tokens` are in tokens, None where the list does not say.
    """

    id: str
    canonical_slug: str
    rates: Rates
    tiers: tuple[Tier, ...] = ()
    context_length: int | None = None
    max_completion_tokens: int | None = None
    priced: bool = True
    alias_of: str | None = None

    def rates_for(self, prompt_tokens: int) -> tuple[Rates, ...]:
        """All rates that can apply to a prompt of up to so many tokens; the dearest of them bounds the price.

        Time windows of overrides are ignored, and later overrides do not hide earlier ones: a request may start in
        one window and be billed in the next.
        """
        return self.rates_in(self.tiers_for(prompt_tokens))

    def tiers_for(self, prompt_tokens: int) -> int:
        """Which tiers can apply to it, as the bits of a number; 0 is none of them."""
        if not self.tiers:
            return 0
        return sum(1 << place for place, tier in enumerate(self.tiers) if prompt_tokens > tier.above)

    def rates_in(self, tiers: int) -> tuple[Rates, ...]:
        """The base rates and those of these tiers."""
        return (self.rates, *(tier.rates for place, tier in enumerate(self.tiers) if tiers >> place & 1))

    def __hash__(self) -> int:
        # Short and good enough: models of two lists may be the same one at two prices.
        return hash(self.id)


class _Unpriced(Exception):
    """A price is negative: it depends on what a router picks."""


class _Malformed(Exception):
    """The entry is not a model that we can read."""


class Catalogue:
    """The models by every name that they are known by. Immutable."""

    def __init__(self, models: Iterable[Model], skipped: int = 0) -> None:
        self.models = tuple(models)
        self.skipped = skipped
        """Entries of the list that could not be read."""
        self._by_name = _by_name(self.models)
        self._others = {name: self._other_names(name) for name in self._by_name}

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """The catalogue in the answer of `/models`. Entries that cannot be read are left out and counted.

        Raises `CatalogueError` if there is no list, or no model with a price in it.
        """
        try:
            document = _DECODER.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise CatalogueError("The list of models is not JSON.") from error
        entries = document.get("data") if isinstance(document, dict) else None
        if not isinstance(entries, list):
            raise CatalogueError('The list of models has no list in "data".')
        models, skipped = [], 0
        for entry in entries:
            try:
                models.append(_model(entry))
            except _Malformed:
                skipped += 1
        if not any(model.priced for model in models):
            raise CatalogueError(f"The list of models has no model with a price ({skipped} could not be read).")
        return cls(models, skipped)

    def __len__(self) -> int:
        return len(self.models)

    def find(self, model_id: str) -> Model | None:
        """The model that a request for `model_id` is about; None if it is not listed.

        Exact id, canonical slug, alias, or one of these with dynamic variants. Case counts, as at OpenRouter. A preset
        (`@preset`) is configured elsewhere, may change the model, and never matches.
        """
        name = self._listed(model_id)
        return None if name is None else self._by_name[name]

    def names(self, model_id: str) -> tuple[str, ...]:
        """Other full ids of the model that `model_id` is about, with the same dynamic variants: for rules on names."""
        # Worked out beforehand where there are no dynamic variants: it is asked for each request.
        others = self._others.get(model_id)
        return self._other_names(model_id) if others is None else others

    def _other_names(self, model_id: str) -> tuple[str, ...]:
        name = self._listed(model_id)
        if name is None:
            return ()
        model, variants = self._by_name[name], model_id[len(name) :]
        others = dict.fromkeys((f"{model.id}{variants}", f"{model.canonical_slug}{variants}"))
        return tuple(other for other in others if other != model_id)

    def _listed(self, model_id: str) -> str | None:
        """The part of `model_id` that is listed: all of it, or what is before its dynamic variants."""
        if len(model_id) > _LONGEST_ID or "@preset" in model_id:
            return None
        name = model_id
        while name not in self._by_name:
            name, _, variant = name.rpartition(":")
            if variant not in DYNAMIC_VARIANTS:
                return None
        return name


_DECODER: msgspec.json.Decoder[Any] = msgspec.json.Decoder(float_hook=Decimal)


def _by_name(models: tuple[Model, ...]) -> Mapping[str, Model]:
    by_id = {model.id: model for model in models}
    # `x` and `x:free` share a canonical slug: it means the plain one, or the dearest of what there is.
    by_slug = {model.canonical_slug: model for model in sorted(models, key=_slug_rank)}
    names = by_slug | by_id
    for model in models:
        if model.alias_of is not None:
            names[model.id] = names.get(model.alias_of, model)
    return MappingProxyType(names)


def _slug_rank(model: Model) -> tuple[bool, bool, int]:
    return model.alias_of is None, ":" not in model.id, model.rates.prompt + model.rates.completion


def _model(entry: object) -> Model:
    if not isinstance(entry, dict):
        raise _Malformed
    model_id, pricing = entry.get("id"), entry.get("pricing")
    if not isinstance(model_id, str) or not model_id or not isinstance(pricing, dict):
        raise _Malformed
    slug = entry.get("canonical_slug")
    alias = entry.get("alias_target")
    alias_slug = alias.get("slug") if isinstance(alias, dict) else None
    provider = entry.get("top_provider")
    top: Mapping[str, object] = provider if isinstance(provider, dict) else {}
    try:
        rates, tiers, priced = _rates(pricing), tuple(_tiers(pricing)), True
    except _Unpriced:
        rates, tiers, priced = Rates(), (), False
    # The endpoint that serves may have the longer context of the two.
    contexts = [length for length in (_count(entry.get("context_length")), _count(top.get("context_length"))) if length]
    return Model(
        id=model_id,
        canonical_slug=slug if isinstance(slug, str) and slug else model_id,
        rates=rates,
        tiers=tiers,
        context_length=max(contexts, default=None),
        max_completion_tokens=_count(top.get("max_completion_tokens")),
        priced=priced,
        alias_of=alias_slug if isinstance(alias_slug, str) and alias_slug != model_id else None,
    )


def _rates(pricing: Mapping[str, object]) -> Rates:
    if "prompt" not in pricing or "completion" not in pricing:
        raise _Malformed
    return Rates(**{field: _femto(pricing.get(field)) for field in _PRICE_FIELDS})


def _tiers(pricing: Mapping[str, object]) -> Iterator[Tier]:
    overrides = pricing.get("overrides")
    if overrides is None:
        return
    if not isinstance(overrides, list):
        raise _Malformed
    for override in overrides:
        if not isinstance(override, dict):
            raise _Malformed
        # Keys that an override does not name stay as they are: the base rates stand beside it.
        rates = Rates(**{field: _femto(override.get(field)) for field in _PRICE_FIELDS})
        yield Tier(_count(override.get("min_prompt_tokens")) or 0, rates)


def _femto(price: object) -> int:
    """Femto-dollars of a price in dollars, rounded up. Absent is 0."""
    if price is None:
        return 0
    if isinstance(price, bool) or not isinstance(price, str | int | Decimal):
        raise _Malformed
    if isinstance(price, str) and len(price) > _LONGEST_PRICE:
        raise _Malformed
    with localcontext(prec=2 * _LONGEST_PRICE):
        try:
            dollars = Decimal(price)
        except InvalidOperation:
            raise _Malformed from None
        if not dollars.is_finite() or dollars > _DEAREST:
            raise _Malformed
        if dollars < 0:
            raise _Unpriced
        return int((dollars * FEMTO).to_integral_value(rounding=ROUND_CEILING))


def _count(value: object) -> int | None:
    """A positive number of tokens, or None."""
    if isinstance(value, Decimal) and value.is_finite() and value <= 2**53:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
