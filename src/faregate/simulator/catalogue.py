"""Models as the simulator sells them: prices, limits, names, and `/models` on the wire (contract, 7 and 9.7)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import msgspec

DYNAMIC_VARIANTS = (":nitro", ":floor", ":exacto")
"""Suffixes that choose an endpoint of the same model; they are not in the list."""

_EFFORTS = ["high", "medium", "low"]
_PARAMETERS = ["max_completion_tokens", "max_tokens", "seed", "stop", "temperature", "top_p"]


def price_text(value: Decimal) -> str:
    """A price or an amount as a plain decimal string, without exponent and without trailing zeros."""
    return format(value.normalize(), "f") if value else "0"


@dataclass(frozen=True, slots=True)
class Prices:
    """Dollars per token, and per request for `request`. None: no price of its own.

    Without a price of its own, cached and reasoning tokens cost what prompt and completion tokens cost.
    `discount` is the share (0 to 1) that OpenRouter takes off what the provider charges.
    """

    prompt: Decimal
    completion: Decimal
    request: Decimal = Decimal(0)
    cache_read: Decimal | None = None
    cache_write: Decimal | None = None
    reasoning: Decimal | None = None
    discount: Decimal = Decimal(0)

    def wire(self) -> dict[str, object]:
        """As the `pricing` object of a model."""
        named = {
            "prompt": self.prompt,
            "completion": self.completion,
            "request": self.request or None,
            "internal_reasoning": self.reasoning,
            "input_cache_read": self.cache_read,
            "input_cache_write": self.cache_write,
        }
        wire: dict[str, object] = {name: price_text(price) for name, price in named.items() if price is not None}
        if self.discount:
            wire["discount"] = msgspec.Raw(price_text(self.discount).encode())
        return wire


@dataclass(frozen=True, slots=True)
class Override:
    """Prices for requests with more than `above` prompt tokens; None keeps the model's own price."""

    above: int
    prompt: Decimal | None = None
    completion: Decimal | None = None
    cache_read: Decimal | None = None
    cache_write: Decimal | None = None

    def changes(self) -> dict[str, Decimal]:
        """The prices that change, by field of `Prices`."""
        named = {
            "prompt": self.prompt,
            "completion": self.completion,
            "cache_read": self.cache_read,
            "cache_write": self.cache_write,
        }
        return {name: price for name, price in named.items() if price is not None}

    def wire(self) -> dict[str, object]:
        """As an entry of `pricing.overrides`."""
        names = {"cache_read": "input_cache_read", "cache_write": "input_cache_write"}
        prices = {names.get(name, name): price_text(price) for name, price in self.changes().items()}
        return {"min_prompt_tokens": self.above, **prices}


@dataclass(frozen=True, slots=True)
class Model:
    """One model. Lengths are in tokens; `max_output` None means as long as the context allows.

    `behaviour` is a text of markers that hold for every request to this model. `serves` names the model that
    answers in place of an alias or a router. `thinks` is how many reasoning tokens it uses unless asked otherwise.
    """

    id: str
    name: str
    provider: str
    dated: str
    context: int
    max_output: int | None
    prices: Prices
    overrides: tuple[Override, ...] = ()
    thinks: int = 0
    must_think: bool = False
    tools: bool = True
    images: bool = False
    behaviour: str = ""
    down: bool = False
    serves: str | None = None
    about: str = ""

    @property
    def permaslug(self) -> str:
        """The dated name of this very version."""
        return f"{self.id.removesuffix(':free').removeprefix('~')}-{self.dated}"

    @property
    def vendor(self) -> str:
        """The author part of the id."""
        return self.id.removeprefix("~").partition("/")[0]

    def prices_at(self, prompt_tokens: int) -> Prices:
        """The prices of a request with so many prompt tokens. The later override wins, key by key."""
        prices = self.prices
        for override in self.overrides:
            if prompt_tokens > override.above:
                prices = replace(prices, **override.changes())
        return prices

    def wire(self) -> dict[str, Any]:
        """As an entry of `/models`, keys in the order of the wire."""
        inputs = ["image", "text"] if self.images else ["text"]
        parameters = list(_PARAMETERS)
        parameters += ["tool_choice", "tools"] if self.tools else []
        parameters += ["include_reasoning", "reasoning"] if self.thinks else []
        pricing = self.prices.wire()
        if self.overrides:
            pricing["overrides"] = [override.wire() for override in self.overrides]
        wire: dict[str, Any] = {
            "id": self.id,
            "canonical_slug": self.permaslug,
            "hugging_face_id": None,
            "name": self.name,
            "created": 1_760_000_000,
            "description": self.about or f"{self.name}, as the simulator plays it.",
            "context_length": self.context,
            "architecture": {
                "modality": f"{'+'.join(reversed(inputs))}->text",
                "input_modalities": inputs,
                "output_modalities": ["text"],
                "tokenizer": "Other",
                "instruct_type": None,
            },
            "pricing": pricing,
            "top_provider": {
                "context_length": self.context,
                "max_completion_tokens": self.max_output,
                "is_moderated": False,
            },
            "per_request_limits": None,
            "supported_parameters": sorted(parameters),
            "default_parameters": {},
            "supported_voices": None,
            "knowledge_cutoff": None,
            "expiration_date": None,
            "links": {"details": f"/api/v1/models/{self.permaslug}/endpoints"},
        }
        if self.id.startswith("~") and self.serves is not None:
            wire["alias_target"] = {"name": self.name, "slug": self.serves}
        if self.thinks:
            wire["reasoning"] = {
                "mandatory": self.must_think,
                "default_enabled": True,
                "supported_efforts": _EFFORTS,
                "default_effort": "medium",
            }
        return wire


class Catalogue:
    """The models by every name they answer to: their id, their dated name, and their dynamic variants."""

    def __init__(self, models: Iterable[Model]) -> None:
        self.models = tuple(models)
        self._by_name = {model.permaslug: model for model in self.models}
        self._by_name |= {model.id: model for model in self.models}
        entries = [model.wire() for model in self.models]
        self.body = msgspec.json.encode({"data": entries, "total_count": len(entries), "links": {"next": None}})

    def find(self, name: str) -> Model | None:
        """The model that answers to this name, aliases and routers resolved; None if there is none."""
        model = self._by_name.get(name)
        if model is None and name.endswith(DYNAMIC_VARIANTS):
            model = self._by_name.get(name.rpartition(":")[0])
        if model is not None and model.serves is not None:
            return self._by_name[model.serves]
        return model
