"""A router over the models on sale, and requests for it."""

import json

from faregate.simulator.catalogue import Catalogue
from faregate.simulator.models import MODELS
from faregate.simulator.request import decode
from faregate.simulator.routing import Router
from faregate.simulator.turn import Turn

GENERATION = "gen-1790000000-abcdefghijklmnopqrst"
ANSWER_TOKENS = 32

_ROUTER = Router(Catalogue(MODELS), answer_tokens=ANSWER_TOKENS, seed=1)


def take(text: str = "Hello", *, router: Router = _ROUTER, **fields: object) -> Turn:
    """The turn of a chat request with this text; `model` is simulator/plain unless given."""
    messages = [{"role": "user", "content": text}]
    body = json.dumps({"model": "simulator/plain", "messages": messages, **fields}).encode()
    return router.take(decode(body), GENERATION, 1_790_000_000.0)
