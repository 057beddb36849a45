"""Patterns of model names: `*` stands for any characters, everything else for itself, in any case.

A model id may end in variants, `openai/gpt-oss-20b:free:online` (contract openrouter, section 6). What is denied or
limited is meant with every variant, so a rule also sees the id without them, and with each of them alone.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

from faregate.policy.model import Policy

_LONGEST_REMEMBERED = 200
"""Characters. Model names come from callers: a cache must not keep megabytes of them."""


def base_id(model: str) -> str:
    """The id without its variants: `openai/gpt-4o` of `openai/gpt-4o:online`."""
    return model.partition(":")[0]


def matches(pattern: str, model: str) -> bool:
    """Whether the whole of `model` fits `pattern`."""
    if len(model) > _LONGEST_REMEMBERED:
        return _fits(_pieces(pattern), model.lower())
    return _remembered(pattern, model)


def any_matches(patterns: Iterable[str], model: str) -> bool:
    """Whether `model` fits one of `patterns`."""
    return any(matches(pattern, model) for pattern in patterns)


def is_allowed(policy: Policy, model: str, aliases: Sequence[str] = ()) -> bool:
    """Whether `policy` lets this model be used.

    `aliases` are other full ids of the same model (`Catalogue.names`). One id must match `allow`, if there is one;
    and no id, nor its base, nor the base with one of its variants may match `deny`.
    """
    names = (model, *aliases)
    if policy.deny and any(any_matches(policy.deny, spelling) for name in names for spelling in _spellings(name)):
        return False
    return not policy.allow or any(any_matches(policy.allow, name) for name in names)


def limit_applies(models: Sequence[str], candidates: Iterable[str]) -> bool:
    """Whether a limit on `models` (patterns; empty is every model) concerns one of the `candidates` (full ids)."""
    return not models or any(
        any_matches(models, spelling) for candidate in candidates for spelling in _spellings(candidate)
    )


def _spellings(model: str) -> tuple[str, ...]:
    if ":" not in model:
        return (model,)
    base, *variants = model.split(":")
    return (model, base, *(f"{base}:{variant}" for variant in dict.fromkeys(variants)))


@lru_cache(maxsize=16_384)
def _remembered(pattern: str, model: str) -> bool:
    return _fits(_pieces(pattern), model.lower())


@lru_cache(maxsize=1024)
def _pieces(pattern: str) -> tuple[str, ...]:
    return tuple(pattern.lower().split("*"))


def _fits(pieces: tuple[str, ...], text: str) -> bool:
    # Each piece is taken at its first place, which is linear: a regular expression of several `.*` can be made to
    # backtrack for minutes by the name of a model.
    first, *rest = pieces
    if not rest:
        return text == first
    *middle, last = rest
    if not text.startswith(first):
        return False
    at, end = len(first), len(text) - len(last)
    for piece in middle:
        found = text.find(piece, at, max(end, 0))
        if found < 0:
            return False
        at = found + len(piece)
    return at <= end and text.endswith(last)
