"""From a request to a turn: which model answers, how long the answer is, and what is refused beforehand."""

import zlib

from faregate.simulator.billing import Tokens
from faregate.simulator.catalogue import Catalogue, Model, Prices
from faregate.simulator.errors import Problem, Subject, before, overloaded, refuse
from faregate.simulator.markers import MarkerError, Markers, parse
from faregate.simulator.request import ChatRequest, last_text, prompt_tokens
from faregate.simulator.tools import call_first
from faregate.simulator.turn import Turn


class Router:
    """Decides requests; the same request, the same answer. `answer_tokens`: how long an answer is unless asked."""

    def __init__(self, catalogue: Catalogue, *, answer_tokens: int, seed: int) -> None:
        self.catalogue = catalogue
        self._answer_tokens = answer_tokens
        self._seed = seed & 0xFFFFFFFF

    def take(self, request: ChatRequest, generation_id: str, created: float) -> Turn:
        """Decide a request. Raises Refused where OpenRouter refuses before it asks a provider (contract, 5)."""
        text = last_text(request.messages or [])
        requested, model, markers, up = self._choose(request, text)
        subject = Subject(model.id, markers.provider or model.provider, text)
        prompt = prompt_tokens(request, dense=markers.dense)
        _check_price(request, model.prices_at(prompt), markers)
        cap = _cap(request, model, prompt)

        wanted = _reasoning(request, model, markers)
        reasoning = min(wanted, cap)
        whole = reasoning == wanted
        tool = call_first(request.tools, f"call_{generation_id[-8:]}") if markers.tool else None
        wanted = self._text(markers)
        spoken = min(wanted, cap - reasoning)
        whole = whole and spoken == wanted
        if tool is not None:
            wanted = tool.tokens
            tool = tool.within(cap - reasoning - spoken)
            whole = whole and tool is not None and tool.tokens == wanted

        cached = min(markers.cached, prompt)
        written = 0 if model.prices.cache_write is None else min(markers.cache_write, prompt - cached)
        completion = reasoning + spoken + (tool.tokens if tool else 0)
        return Turn(
            id=generation_id,
            created=created,
            requested=requested,
            model=model,
            provider=subject.provider,
            stream=bool(request.stream),
            markers=markers,
            tokens=Tokens(prompt, completion, reasoning, cached, written),
            text=spoken,
            tool=tool,
            show_reasoning=not (request.reasoning is not None and request.reasoning.exclude),
            finish=("tool_calls" if tool else "stop") if whole else "length",
            offset=zlib.crc32(text.encode(), self._seed),
            user=request.user,
            failure=_failure(markers, subject, up=up),
        )

    def _choose(self, request: ChatRequest, text: str) -> tuple[str, Model, Markers, bool]:
        """The model asked for, the one that answers, what holds for it, and whether it is up."""
        names = request.candidates()
        if not names:
            raise refuse(400, "No models provided")
        models = []
        for name in names:
            if (model := self.catalogue.find(name)) is None:
                raise refuse(400, f"{name} is not a valid model ID")
            models.append(model)
        markers = _markers(text)
        up = [model for model in models[markers.fallback :] if not model.down]
        model = up[0] if up else models[-1]
        if model.behaviour:
            markers = parse(text, parse(model.behaviour))
        return names[0], model, markers, bool(up)

    def _text(self, markers: Markers) -> int:
        if markers.tokens is not None:
            return markers.tokens
        return 0 if markers.tool else self._answer_tokens


def _markers(text: str) -> Markers:
    try:
        return parse(text)
    except MarkerError as error:
        raise refuse(400, str(error)) from error


def _failure(markers: Markers, subject: Subject, *, up: bool) -> Problem | None:
    if markers.error is not None:
        return before(markers.error, subject)
    return None if up else overloaded(subject)


def _check_price(request: ChatRequest, prices: Prices, markers: Markers) -> None:
    """`provider.max_price` is in dollars per million tokens and a hard filter (contract, 6)."""
    ceiling = (request.provider.max_price if request.provider else None) or {}
    for kind, price in (("prompt", prices.prompt), ("completion", prices.completion)):
        if kind in ceiling and (price * markers.dearer).scaleb(6) > ceiling[kind]:
            message = "No endpoints found that satisfy the max price for this request"
            raise refuse(404, message, {"failed_routing_step": "Filter by Max Price"})


def _cap(request: ChatRequest, model: Model, prompt: int) -> int:
    """The most completion tokens, reasoning included: what the client allows, the model can, the context holds."""
    room = model.context - prompt
    if room < 1:
        raise refuse(
            400,
            f"This endpoint's maximum context length is {model.context} tokens. "
            f"However, you requested about {prompt} tokens. Please reduce the length of the input.",
        )
    most = room if model.max_output is None else min(room, model.max_output)
    return min([most, *request.caps()])


def _reasoning(request: ChatRequest, model: Model, markers: Markers) -> int:
    """The reasoning tokens that the answer wants."""
    if markers.reasoning is not None:
        return markers.reasoning
    wish = request.reasoning
    if wish is None or not model.thinks:
        return model.thinks
    if wish.enabled is False or wish.effort == "none":
        if model.must_think:
            raise refuse(400, "Reasoning is mandatory for this endpoint and cannot be disabled.")
        return 0
    wanted = model.thinks * 2 if wish.effort in ("high", "xhigh", "max") else model.thinks
    return wanted if wish.max_tokens is None else min(wanted, max(wish.max_tokens, 0))
