"""A turn: one request for which it is decided who answers, with how many tokens, and on which terms."""

from dataclasses import dataclass

from faregate.simulator.billing import NOTHING, Charge, Terms, Tokens, charge, stops_when_left
from faregate.simulator.catalogue import Model
from faregate.simulator.errors import Problem
from faregate.simulator.markers import Markers
from faregate.simulator.tools import ToolCall

_NATIVE = {
    "openai": {"stop": "completed", "length": "max_output_tokens", "tool_calls": "completed"},
    "google": {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP"},
    "anthropic": {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"},
}


@dataclass(frozen=True, slots=True)
class Turn:
    """`created` is in seconds since the epoch. `failure` is answered instead of a completion.

    `tokens` are those of the whole completion: its reasoning, then `text`, then the tool call. `offset` chooses
    the words of the answer.
    """

    id: str
    created: float
    requested: str
    model: Model
    provider: str
    stream: bool
    markers: Markers
    tokens: Tokens
    text: int
    tool: ToolCall | None
    show_reasoning: bool
    finish: str
    offset: int
    user: str | None
    failure: Problem | None = None

    @property
    def shown_model(self) -> str:
        """The model as the reply names it."""
        return self.model.permaslug if self.markers.permaslug else self.model.id

    @property
    def native_finish(self) -> str:
        """The finish reason in the provider's own words."""
        return _NATIVE.get(self.model.vendor, {}).get(self.finish, self.finish)

    def generated(self, events: int) -> int:
        """The completion tokens that exist once so many events of the stream were sent."""
        if events <= 0:
            return 0
        unseen = 0 if self.show_reasoning else self.tokens.reasoning
        return min(self.tokens.completion, unseen + events)

    def billed_if_left(self, events: int) -> Tokens:
        """The tokens that are billed if the client leaves after so many events of a stream (contract, 4)."""
        if self.stream and stops_when_left(self.provider):
            return self.tokens.up_to(self.generated(events))
        return self.tokens

    def charge(self, tokens: Tokens) -> Charge:
        """The charge for these tokens of this turn.

        A turn that was left before its first token costs nothing: the zero-completion insurance (contract, 2.1).
        """
        if tokens.completion == 0 < self.tokens.completion:
            return NOTHING
        marked = self.markers
        prices = self.model.prices_at(tokens.prompt)
        discount = prices.discount if marked.discount is None else marked.discount
        return charge(prices, tokens, Terms(marked.byok, discount, marked.dearer, marked.cost == "tiny"))
