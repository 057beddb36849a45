"""From a caller and a request to a hold, or to a refusal that says why.

Nothing here waits for the database: people, rules and prices are in memory, and the hold is one call.
"""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from faregate.accounting.accountant import Accountant
from faregate.accounting.lease import LEASE_SECONDS
from faregate.directory import Directory, User
from faregate.gateway.errors import ApiError, bad_request, books_closed, ledger_away
from faregate.gateway.identity import Caller
from faregate.gateway.limits import Terms, over_limit, rule_in_words
from faregate.gateway.plans import Plan, Plans
from faregate.gateway.request import ChatRequest
from faregate.gateway.unbounded import evasion
from faregate.ledger.fitting import refusal
from faregate.ledger.forms import Claims
from faregate.ledger.journal import JournalError
from faregate.ledger.port import Balance, Held, Ledger, LedgerAway, Refused
from faregate.policy.explain import model_not_allowed_sentence, model_unknown_sentence
from faregate.policy.model import Enforcement
from faregate.policy.rulebook import Resolution
from faregate.policy.windows import Calendar
from faregate.pricing.body import MalformedBody, PromptBound, prompt_bound
from faregate.pricing.bound import Bound, Ceiling, bound_of, dearest
from faregate.pricing.catalogue import Catalogue
from faregate.pricing.estimate import estimate_of
from faregate.records import Facts, Status, UsageRecord, altered
from faregate.settings import OnOutage

_NOTHING = Bound(prompt_tokens=0, fixed_nano=0, nano_per_output_token=0, output_limit=None)

LEAST_CAP = 256
"""Output tokens below which an answer is not worth admitting, unless the client itself asks for less."""

_PROMPT_TOO = frozenset({"tools", "response_format", "cache_control"})
"""What else becomes part of the prompt, or says how long it is to be cached: most requests have none of it."""

UNHELD = "ledger away: admitted without a hold"
"""The rule that stands in the record of a request that nobody could check."""


class Admission(msgspec.Struct, frozen=True, gc=False):
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
    not be said. `overloaded` were not looked at: there was no room for them.
    """

    admitted: int = 0
    unchecked: int = 0
    refused: int = 0
    unavailable: int = 0
    overloaded: int = 0


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
        self._plans = Plans()
        self._terms = Terms()
        # One for each person that the directory has.
        self._pseudonyms: dict[str, str] = {}
        self.outcomes = Outcomes()

    async def admit(self, request_id: str, caller: Caller, request: ChatRequest) -> Admission:
        """Register the person, check the rules, take the hold. Raises `ApiError`; a refusal is on record then."""
        now = self._clock()
        user = self._directory.recognise(caller.person, now)
        resolution = self._directory.resolve(user)
        plan = self._plans.of(request.candidates, resolution, self._catalogue())
        try:
            self._permit(user, plan, request)
            prompt = _prompt(request)
        except ApiError as error:
            self._refuse(error, _facts(request_id, now, user, caller, request, plan, _NOTHING, 0))
            raise
        bound = _bound(plan, prompt)
        wanted = _cap_wanted(request, plan, prompt, bound)
        facts = _facts(request_id, now, user, caller, request, plan, bound, wanted)
        try:
            answer = await self._reserve(facts, self._claims(facts, resolution, plan, prompt, bound))
        except ApiError as error:
            self._refuse(error, altered(facts, cap=0, prompt_bound=0, fixed_nano=0, nano_per_output_token=0))
            raise
        ceiling = bound.ceiling if plan.bounds_dollars else None
        if answer is None:
            self.outcomes.unchecked += 1
            facts = altered(facts, rules=(*facts.rules, UNHELD))
        else:
            self.outcomes.admitted += 1
            if answer.cap != facts.cap or answer.exceeded:
                facts = _granted(facts, answer)
        return Admission(facts, self._pseudonym(facts.user_id), ceiling, answer is None)

    def _refuse(self, error: ApiError, facts: Facts) -> None:
        if error.status == 503:
            self.outcomes.unavailable += 1
        else:
            self.outcomes.refused += 1
        self._accountant.refuse(UsageRecord(facts, Status.REFUSED, requests=0, reason=error.reason or error.message))

    def _permit(self, user: User, plan: Plan, request: ChatRequest) -> None:
        """Raises `ApiError` where the person may not ask this, or nobody can tell."""
        if not user.is_active:
            raise ApiError(
                403,
                f"Your access has been switched off. If you think that this is a mistake, ask {self._contact}.",
                "permission_error",
                "user_deactivated",
            )
        if plan.forbidden is not None:
            message = model_not_allowed_sentence(plan.forbidden, plan.policy, contact=self._contact)
            raise ApiError(403, message, "permission_error", "model_not_allowed", "model")
        if (what := evasion(request, plan.policy)) is not None:
            raise ApiError(
                403,
                f"This request uses {what}, which your policy cannot allow, since what it does and costs cannot be "
                f"known beforehand. Leave it out, or ask {self._contact}.",
                "permission_error",
                "not_boundable",
            )
        if plan.unknown is not None:
            message = model_unknown_sentence(plan.unknown)
            raise ApiError(404, message, "invalid_request_error", "model_not_found", "model")
        if plan.counts_dollars and not plan.models:
            raise ApiError(
                503,
                "The prices of models are not known at the moment, so no request can be checked against your "
                "limits. Please try again in a minute.",
                "upstream_error",
                "prices_unknown",
                headers={"retry-after": "30"},
            )

    def _claims(self, facts: Facts, resolution: Resolution, plan: Plan, prompt: PromptBound, bound: Bound) -> Claims:
        asked = bound
        if plan.policy.enforcement is Enforcement.SOFT and plan.models:
            asked = dearest([estimate_of(model, prompt) for model in plan.models])
        counters = self._accountant.counters(facts.user_id, facts.groups, plan.names, facts.admitted_at)
        return self._terms.claims(facts.user_id, plan.names, counters, resolution, asked)

    async def _reserve(self, facts: Facts, claims: Claims) -> Held | None:
        """What the ledger grants; None where it is away and that lets requests through. Raises `ApiError`."""
        least = LEAST_CAP if facts.cap > LEAST_CAP else facts.cap
        try:
            answer: Held | Refused | None = await self._ledger.reserve(
                facts,
                node=self._node,
                lease=LEASE_SECONDS,
                claims=claims,
                cap_wanted=facts.cap,
                cap_min=least,
                now=facts.admitted_at,
            )
        except JournalError as error:
            raise books_closed(self._contact, str(error)) from error
        except LedgerAway as error:
            if self._on_outage is OnOutage.CLOSED:
                raise ledger_away(self._contact, str(error)) from error
            # A limit of nothing says no to everybody, whatever has been used: nobody has to be asked.
            answer = refusal([(claim, Balance()) for claim in claims if claim.limit == 0], least)
        if isinstance(answer, Refused):
            raise over_limit(answer, facts.admitted_at, self._calendar.zone, self._contact)
        return answer

    def _pseudonym(self, user_id: str) -> str:
        if (known := self._pseudonyms.get(user_id)) is None:
            known = self._pseudonyms[user_id] = self._new_pseudonym(user_id)
        return known

    def _new_pseudonym(self, user_id: str) -> str:
        return "fg-" + hmac.new(self._salt, user_id.encode(), hashlib.sha256).hexdigest()[:32]


def _prompt(request: ChatRequest) -> PromptBound:
    messages = bytes(request.fields["messages"])
    try:
        if _PROMPT_TOO.isdisjoint(request.fields):
            return prompt_bound(messages)
        other = [raw for name in ("response_format", "cache_control") if (raw := request.raw(name)) is not None]
        return prompt_bound(messages, request.raw("tools"), other)
    except MalformedBody as error:
        raise bad_request(str(error), "messages") from None


def _bound(plan: Plan, prompt: PromptBound) -> Bound:
    models = plan.models
    if len(models) == 1:
        return bound_of(models[0], prompt)
    if not models:
        return Bound(prompt_tokens=prompt.prompt_tokens, fixed_nano=0, nano_per_output_token=0, output_limit=None)
    return dearest([bound_of(model, prompt) for model in models])


def _cap_wanted(request: ChatRequest, plan: Plan, prompt: PromptBound, bound: Bound) -> int:
    wanted = plan.policy.max_output_tokens
    for limit in (request.cap, bound.output_limit, _room(plan, prompt)):
        if limit is not None and limit < wanted:
            wanted = limit
    return max(1, wanted)


def _room(plan: Plan, prompt: PromptBound) -> int | None:
    """How many tokens of an answer fit beside the prompt: providers refuse a cap of more. None if nobody knows."""
    if plan.longest_context is None:
        return None
    # The prompt's bound is a token for each byte; real text has two bytes in a token, or more.
    return max(LEAST_CAP, plan.longest_context - prompt.prompt_tokens // 2)


def _facts(
    request_id: str,
    now: float,
    user: User,
    caller: Caller,
    request: ChatRequest,
    plan: Plan,
    bound: Bound,
    cap: int,
) -> Facts:
    # Not all by name: so many names would be passed as a dictionary, at three times the cost.
    return Facts(
        request_id,
        now,
        user.connection,
        user.id,
        user.email,
        user.groups,
        policy_id=plan.policy.id,
        model=request.model,
        candidates=request.candidates,
        aliases=plan.aliases,
        stream=request.stream,
        chat_id=caller.chat_id,
        task=caller.task,
        cap=cap,
        prompt_bound=bound.prompt_tokens,
        fixed_nano=bound.fixed_nano,
        nano_per_output_token=bound.nano_per_output_token,
        rules=plan.rules,
    )


def _granted(facts: Facts, answer: Held) -> Facts:
    """The `facts` of a request for the cap that it wanted, with what the ledger made of it."""
    noted = (f"shadow: would refuse by {rule_in_words(counter)}" for counter in answer.exceeded)
    return altered(facts, cap=answer.cap, rules=(*facts.rules, *noted))
