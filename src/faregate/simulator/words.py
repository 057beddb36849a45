"""What the simulator says: a handful of sentences, one word a token, in a circle."""

from itertools import accumulate

_ANSWER = (
    "The gate opens once your card covers the longest ride.",
    "Take the blue line to the harbour and change at the old market.",
    "A fare is only charged when you leave, and never twice.",
    'The sign says "mind the gap", and everybody does.',
    "Trains run every four minutes until midnight, then every twenty.",
    "If the doors stay closed, ask the guard on the platform.",
    "Zürich, Łódź and São Paulo have trams; 東京 has more trains than anyone.",
    "Keep your ticket: the way out asks for it again.",
    "On the hill the cable car takes over and the rails end.",
    "Nothing here was written by a model, and that is the point.",
)
_THOUGHT = (
    "The traveller wants the shortest way.",
    "First compare the blue line with the green one.",
    "The market is closed on Sunday, so the change takes longer.",
    "Four minutes of waiting, two of walking, that still fits.",
    "Then the harbour is the better choice.",
)


def _tokens(sentences: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f" {word}" for sentence in sentences for word in sentence.split())


ANSWER = _tokens(_ANSWER)
THOUGHT = _tokens(_THOUGHT)
STARTS = (0, *accumulate(len(sentence.split()) for sentence in _ANSWER[:-1]))
"""Where in `ANSWER` the sentences begin."""


def circle(tokens: tuple[bytes, ...], start: int, count: int) -> tuple[bytes, ...]:
    """`count` tokens from `start` on, beginning anew at the end."""
    rounds = (start + count) // len(tokens) + 1
    return (tokens * rounds)[start : start + count]
