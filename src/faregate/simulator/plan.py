"""From a turn to the plan of its delivery."""

from dataclasses import dataclass, replace

from faregate.simulator.billing import Charge
from faregate.simulator.chat import COMMENT, error_body, error_events, events, json_body
from faregate.simulator.delivery import Ending, Plan
from faregate.simulator.errors import JSON, Problem
from faregate.simulator.turn import Turn

EVENTS = b"text/event-stream"
_EXPOSED = b"X-Generation-Id,X-Provider-Name,request-id,cf-ray"
_WHITESPACE = b"\n         \n"
_STRING_CODE_AFTER = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """How a turn is answered. `fails`: there is an error in place of the answer, or at its end if it `streams`."""

    plan: Plan
    fails: bool
    streams: bool


def headers(content_type: bytes, generation_id: str | None = None) -> list[tuple[bytes, bytes]]:
    """The headers that every answer carries (contract, 1)."""
    found = [
        (b"content-type", content_type),
        (b"access-control-allow-origin", b"*"),
        (b"access-control-expose-headers", _EXPOSED),
    ]
    if generation_id is not None:
        found.append((b"x-generation-id", generation_id.encode()))
    return found


def problem_plan(problem: Problem, generation_id: str | None = None) -> Plan:
    """An error with its own status."""
    return Plan(problem.status, [*headers(problem.content_type, generation_id), *problem.headers], [problem.body])


def answer(turn: Turn, charge: Charge, pace: float) -> Answer:
    """How this turn is answered; `pace` in seconds between events, where the request does not say otherwise."""
    error_after = _error_after(turn)
    fails, streams = True, False
    if turn.failure is not None:
        plan = problem_plan(turn.failure, turn.id)
    elif turn.markers.error_200 or (error_after is not None and not turn.stream):
        plan = _json_plan(turn, error_body(turn))
    elif error_after is not None:
        plan = _stream_plan(turn, error_events(turn, charge, error_after))
        streams = True
    elif turn.stream:
        plan = _stream_plan(turn, events(turn, charge))
        fails, streams = False, True
    else:
        plan = _json_plan(turn, json_body(turn, charge))
        fails = False
    return Answer(_staged(plan, turn, pace), fails, streams)


def _json_plan(turn: Turn, body: bytes) -> Plan:
    return Plan(200, headers(JSON, turn.id), [body], (_WHITESPACE,) * turn.markers.whitespace)


def _stream_plan(turn: Turn, steps: list[bytes]) -> Plan:
    comment = COMMENT.replace(b"\n", b"\r\n") if turn.markers.crlf else COMMENT
    found = [*headers(EVENTS, turn.id), (b"cache-control", b"no-cache")]
    return Plan(200, found, steps, (comment,) * turn.markers.comments)


def _staged(plan: Plan, turn: Turn, pace: float) -> Plan:
    marked = turn.markers
    pace = pace if marked.pace is None else marked.pace
    if pace or marked.wait or marked.split:
        plan = replace(plan, wait=marked.wait, pace=pace, split=marked.split)
    if marked.cut is not None:
        return _ended(plan, turn, Ending.CUT, marked.cut)
    if marked.stall is not None:
        return _ended(plan, turn, Ending.SILENCE, marked.stall)
    return plan


def _ended(plan: Plan, turn: Turn, ending: Ending, after: int) -> Plan:
    """The plan as far as so many events, or bytes where there are none."""
    steps = plan.steps[:after] if turn.stream else [plan.steps[0][:after]] if after else []
    return replace(plan, steps=steps, ending=ending)


def _error_after(turn: Turn) -> int | None:
    marked = turn.markers
    if marked.error_first:
        return 0
    if marked.error_after is None and marked.error_code_string:
        return _STRING_CODE_AFTER
    return marked.error_after
