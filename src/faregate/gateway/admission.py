"""From a caller and a request to a hold, or to a refusal that says why.

Nothing here waits for the database: people, rules and prices are in memory, and the hold is one call.
"""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass

from faregate.accounting.accountant import Accountant
from faregate.accounting.lease import LEASE_SECONDS
from faregate.directory import Directory, User
from faregate.gateway.errors import ApiError, bad_request, books_closed, ledger_away
from faregate.gateway.identity import Caller
from faregate.gateway.limits import Terms, over_limit, rule_in_words
from faregate.gateway.request import ChatRequest
from faregate.gateway.unbounded import evasion
from faregate.ledger.fitting import refusal
from faregate.ledger.journal import JournalError
from faregate.ledger.port import Balance, Claim, Held, Ledger, LedgerAway, Refused
from faregate.policy.explain import model_not_allowed_sentence, model_unknown_sentence
from faregate.policy.model import Enforcement, Meter, Policy
from faregate.policy.patterns import is_allowed
from faregate.policy.rulebook import Resolution
from faregate.policy.windows import Calendar
from faregate.pricing.body import MalformedBody, PromptBound, prompt_bound
from faregate.pricing.bound import Bound, Ceiling, bound_of, ceiling_of, dearest
from faregate.pricing.catalogue import Catalogue, Model
from faregate.pricing.estimate import estimate_of
from faregate.records import Facts, Status, UsageRecord, altered
from faregate.settings import OnOutage

LEAST_CAP = 256
"""Output tokens below which an answer is not worth admitting, unless the client itself asks for less."""

UNHELD = "ledger away: admitted without a hold"
"""The rule that stands in the record of a request that nobody could check."""


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that holds what it may cost, or is `unchecked`: nothing is held, since the ledger was away.

    `pseudonym` is the person's name towards upstream. `ceiling` are the prices that the hold was made of, where a
    limit in dollars depends on them.
    """

    facts: Facts
    pseudonym: str
    ceiling: Ceiling | None
    unchecked: bool = False


@dataclass(slots=True)
class Outcomes:
    """How many requests ended their admission in which way, since the start.

    `admitted` have a hold, `unchecked` have none; `refused` broke a rule or a limit; for `unavailable` that could
    not be said.
    """

    admitted: int = 0
    unchecked: int = 0
    refused: int = 0
    unavailable: int = 0


class Admitter:
    """Decides who may ask what, and takes the hold."""

    def __init__(
        self,
        *,
        directory: Directory,
        catalogue: Callable[[], Catalogue | None],
        ledger: Ledger,
        accountant: Accountant,
        calendar: Calendar,
        clock: Callable[[], float],
        node: str,
        salt: bytes,
        contact: str,
        on_outage: OnOutage,
    ) -> None:
        """`on_outage` is what happens to requests while a shared `ledger` is away."""
        self._directory = directory
        self._catalogue = catalogue
        self._ledger = ledger
        self._accountant = accountant
        self._calendar = calendar
        self._clock = clock
        self._node = node
        self._salt = salt
        self._contact = contact
        self._on_outage = on_outage
        self._terms = Terms()
        # One for each person that the directory has.
        self._pseudonyms: dict[str, str] = {}
        self.outcomes = Outcomes()

    async def admit(self, request_id: str, caller: Caller, request: ChatRequest) -> Admission:
        """Register the person, check the rules, take the hold. Raises `ApiError`; a refusal is on record then."""
        now = self._clock()
        user = self._directory.recognise(caller.person, now)
        resolution = self._directory.resolve(user)
        policy = resolution.policy
        catalogue = self._catalogue()
        facts = Facts(
            request_id=request_id,
            admitted_at=now,
            connection=user.connection,
            user_id=user.id,
            email=user.email,
            groups=user.groups,
            policy_id=policy.id,
            model=request.model,
            candidates=request.candidates,
            aliases=tuple(catalogue.names(name) if catalogue else () for name in request.candidates),
            stream=request.stream,
            chat_id=caller.chat_id,
            task=caller.task,
            rules=(resolution.words,),
        )
        try:
            models = self._permit(user, policy, request, facts, catalogue)
            admission = await self._hold(facts, resolution, request, models)
        except ApiError as error:
            if error.status == 503:
                self.outcomes.unavailable += 1
            else:
                self.outcomes.refused += 1
            self._accountant.refuse(
                UsageRecord(facts, Status.REFUSED, requests=0, reason=error.reason or error.message)
            )
            raise
        if admission.unchecked:
            self.outcomes.unchecked += 1
        else:
            self.outcomes.admitted += 1
        return admission

    def _permit(
        self, user: User, policy: Policy, request: ChatRequest, facts: Facts, catalogue: Catalogue | None
    ) -> list[Model]:
        """The priced models that may answer; none of them while no prices are known at all."""
        if not user.is_active:
            raise ApiError(
                403,
                f"Your access has been switched off. If you think that this is a mistake, ask {self._contact}.",
                "permission_error",
                "user_deactivated",
            )
        for model, *aliases in facts.families():
            if not is_allowed(policy, model, aliases):
                message = model_not_allowed_sentence(model, policy, contact=self._contact)
                raise ApiError(403, message, "permission_error", "model_not_allowed", "model")
        if (what := evasion(request, policy)) is not None:
            raise ApiError(
                403,
                f"This request uses {what}, which your policy cannot allow, since what it does and costs cannot be "
                f"known beforehand. Leave it out, or ask {self._contact}.",
                "permission_error",
                "not_boundable",
            )
        if catalogue is None:
            if _counts_dollars(policy):
                raise ApiError(
                    503,
                    "The prices of models are not known at the moment, so no request can be checked against your "
                    "limits. Please try again in a minute.",
                    "upstream_error",
                    "prices_unknown",
                    headers={"retry-after": "30"},
                )
            return []
        models = []
        for name in request.candidates:
            found = catalogue.find(name)
            if found is None or not found.priced:
                raise ApiError(404, model_unknown_sentence(name), "invalid_request_error", "model_not_found", "model")
            models.append(found)
        return models

    async def _hold(self, facts: Facts, resolution: Resolution, request: ChatRequest, models: list[Model]) -> Admission:
        policy = resolution.policy
        prompt = _prompt(request)
        bound = dearest(bound_of(model, prompt) for model in models) if models else _unpriced(prompt)
        asked = bound
        if policy.enforcement is Enforcement.SOFT and models:
            asked = dearest(estimate_of(model, prompt) for model in models)
        wanted = _cap_wanted(request, policy, models, prompt, bound)
        facts = altered(
            facts,
            prompt_bound=bound.prompt_tokens,
            fixed_nano=bound.fixed_nano,
            nano_per_output_token=bound.nano_per_output_token,
        )
        names = facts.names()
        counters = self._accountant.counters(facts.user_id, facts.groups, names, facts.admitted_at)
        claims = self._terms.claims(facts.user_id, names, counters, resolution, asked)
        answer = await self._reserve(facts, claims, wanted)
        if isinstance(answer, Refused):
            raise over_limit(answer, facts.admitted_at, self._calendar.zone, self._contact)
        cap = wanted if answer is None else answer.cap
        noted: tuple[str, ...] = (UNHELD,)
        if answer is not None:
            noted = tuple(f"shadow: would refuse by {rule_in_words(counter)}" for counter in answer.exceeded)
        bounded = policy.enforcement is Enforcement.STRICT and _counts_dollars(policy) and models
        return Admission(
            facts=altered(facts, cap=cap, rules=facts.rules + noted),
            pseudonym=self._pseudonym(facts.user_id),
            ceiling=ceiling_of(models, prompt) if bounded else None,
            unchecked=answer is None,
        )

    async def _reserve(self, facts: Facts, claims: list[Claim], wanted: int) -> Held | Refused | None:
        """What the ledger says; None where it is away and that lets requests through."""
        least = min(LEAST_CAP, wanted)
        try:
            return await self._ledger.reserve(
                facts,
                node=self._node,
                lease=LEASE_SECONDS,
                claims=claims,
                cap_wanted=wanted,
                cap_min=least,
                now=facts.admitted_at,
            )
        except JournalError as error:
            raise books_closed(self._contact, str(error)) from error
        except LedgerAway as error:
            if self._on_outage is OnOutage.CLOSED:
                raise ledger_away(self._contact, str(error)) from error
        # A limit of nothing says no to everybody, whatever has been used: nobody has to be asked.
        return refusal([(claim, Balance()) for claim in claims if claim.limit == 0], least)

    def _pseudonym(self, user_id: str) -> str:
        if (known := self._pseudonyms.get(user_id)) is None:
            known = self._pseudonyms[user_id] = self._new_pseudonym(user_id)
        return known

    def _new_pseudonym(self, user_id: str) -> str:
        return "fg-" + hmac.new(self._salt, user_id.encode(), hashlib.sha256).hexdigest()[:32]


def _prompt(request: ChatRequest) -> PromptBound:
    # What else becomes part of the prompt, or says how long it is to be cached.
    other = [raw for name in ("response_format", "cache_control") if (raw := request.raw(name)) is not None]
    try:
        return prompt_bound(request.raw("messages") or b"[]", request.raw("tools"), other)
    except MalformedBody as error:
        raise bad_request(str(error), "messages") from None


def _unpriced(prompt: PromptBound) -> Bound:
    return Bound(prompt_tokens=prompt.prompt_tokens, fixed_nano=0, nano_per_output_token=0, output_limit=None)


def _cap_wanted(request: ChatRequest, policy: Policy, models: list[Model], prompt: PromptBound, bound: Bound) -> int:
    caps = [policy.max_output_tokens]
    if request.cap is not None:
        caps.append(request.cap)
    if bound.output_limit is not None:
        caps.append(bound.output_limit)
    contexts = [model.context_length for model in models if model.context_length is not None]
    if contexts:
        # Providers refuse a cap that does not fit beside the prompt. The prompt's bound is a token for each byte;
        # real text has two bytes in a token, or more.
        caps.append(max(LEAST_CAP, max(contexts) - prompt.prompt_tokens // 2))
    return max(1, min(caps))


def _counts_dollars(policy: Policy) -> bool:
    return policy.enforcement is not Enforcement.SHADOW and any(limit.meter is Meter.USD for limit in policy.limits)
