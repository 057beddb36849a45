"""What rules and prices make of the models that a request names: worked out once for as long as both stay."""

from dataclasses import dataclass

from faregate.policy.model import Enforcement, Meter, Policy
from faregate.policy.patterns import is_allowed
from faregate.policy.rulebook import Resolution
from faregate.pricing.catalogue import Catalogue, Model

MOST_REMEMBERED = 4_096
"""Choices of models, each under the rules of some people, whose plans are remembered."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known of every request for these models under these rules.

    `aliases` are for each model its other names, `names` all names of all of them. `forbidden` is the first model
    that the policy does not allow, `unknown` the first that is not listed with a price; while no prices are known at
    all nobody can say, and `models` are none. `longest_context` is in tokens, None where no model says. `rules` are
    those that matched, in words. `counts_dollars`: prices decide who is refused; `bounds_dollars`: they have to hold.
    """

    policy: Policy
    aliases: tuple[tuple[str, ...], ...]
    names: tuple[str, ...]
    forbidden: str | None
    unknown: str | None
    models: tuple[Model, ...]
    longest_context: int | None
    rules: tuple[str, ...]
    counts_dollars: bool
    bounds_dollars: bool


class Plans:
    """The plans of the catalogue of this moment."""

    def __init__(self) -> None:
        self._catalogue: Catalogue | None = None
        self._known: dict[tuple[Resolution, tuple[str, ...]], Plan] = {}

    def of(self, candidates: tuple[str, ...], resolution: Resolution, catalogue: Catalogue | None) -> Plan:
        """The plan of requests that any of `candidates` may answer."""
        if catalogue is not self._catalogue:
            self._catalogue = catalogue
            self._known.clear()
        key = resolution, candidates
        if (known := self._known.get(key)) is not None:
            return known
        plan = _plan(candidates, resolution, catalogue)
        # What is refused may have any name: those are not kept.
        if plan.forbidden is None and plan.unknown is None:
            if len(self._known) >= MOST_REMEMBERED:
                self._known.clear()
            self._known[key] = plan
        return plan


def _plan(candidates: tuple[str, ...], resolution: Resolution, catalogue: Catalogue | None) -> Plan:
    policy = resolution.policy
    aliases = tuple(catalogue.names(name) if catalogue is not None else () for name in candidates)
    families = tuple(zip(candidates, aliases, strict=True))
    models, unknown = _priced(candidates, catalogue) if catalogue is not None else ((), None)
    contexts = [model.context_length for model in models if model.context_length is not None]
    dollars = any(limit.meter is Meter.USD for limit in policy.limits)
    return Plan(
        policy=policy,
        aliases=aliases,
        names=tuple(name for model, others in families for name in (model, *others)),
        forbidden=next((model for model, others in families if not is_allowed(policy, model, others)), None),
        unknown=unknown,
        models=models,
        longest_context=max(contexts, default=None),
        rules=(resolution.words,),
        counts_dollars=dollars and policy.enforcement is not Enforcement.SHADOW,
        bounds_dollars=dollars and policy.enforcement is Enforcement.STRICT,
    )


def _priced(candidates: tuple[str, ...], catalogue: Catalogue) -> tuple[tuple[Model, ...], str | None]:
    """The models with a price, and the first of the names that is of none."""
    models = []
    for name in candidates:
        model = catalogue.find(name)
        if model is None or not model.priced:
            return (), name
        models.append(model)
    return tuple(models), None
