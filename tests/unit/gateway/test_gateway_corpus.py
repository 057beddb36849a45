"""The streams of the corpus: however one is split, and whatever mixture of them comes, what is relayed and found stays.

Each file of `corpus` is a stream as an upstream might send it. A stream that ever broke the property belongs there.
"""

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faregate.gateway.sse import Reader, Splitter

CORPUS = {path.stem: path.read_bytes() for path in sorted(Path(__file__).with_name("corpus").glob("*.sse"))}
SNIPPETS = [b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b"data:", b"[DONE]", b"{", b'"usage":', b"\xff", b" "]


class Relayed(NamedTuple):
    """What a client gets, and what the record is made of."""

    data: bytes
    error: bytes | None
    usage: bytes | None
    usage_counts: bool
    names: tuple[str | None, str | None, str | None]
    done: bool


def relayed(stream: bytes, cuts: list[int]) -> Relayed:
    """The stream through splitter and reader, as the relay uses them."""
    splitter, reader, out, error = Splitter(), Reader(), b"", None
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    blocks = [splitter.feed(stream[a:b]) for a, b in pairwise(edges)]
    for block in [*blocks, splitter.rest()]:
        if block:
            passed = reader.read(block)
            if error is None:
                out += passed.data
                error = None if passed.error is None else bytes(passed.error["error"])
    return Relayed(
        out,
        error,
        None if reader.usage is None else bytes(reader.usage),
        reader.done or reader.usage_was_last,
        (reader.provider, reader.model, reader.generation_id),
        reader.done,
    )


CUTS = st.lists(st.integers(0, 4096), max_size=12)


def test_the_corpus_is_there():
    assert len(CORPUS) > 20


@pytest.mark.parametrize("name", CORPUS)
def test_a_stream_of_the_corpus_is_the_same_byte_by_byte_and_cut_anywhere_in_two(name: str):
    stream = CORPUS[name]
    whole = relayed(stream, [])
    assert relayed(stream, list(range(len(stream)))) == whole
    for cut in range(len(stream)):
        assert relayed(stream, [cut]) == whole, cut


@pytest.mark.parametrize("name", CORPUS)
def test_a_stream_of_the_corpus_that_breaks_off_anywhere_never_passes_half_an_event(name: str):
    stream = CORPUS[name]
    for end in range(len(stream)):
        data = relayed(stream[:end], []).data
        assert not data.strip() or data.endswith((b"\n\n", b"\r\r", b"\n\r\n")), end


@given(pieces=st.lists(st.sampled_from([*CORPUS.values(), *SNIPPETS]) | st.binary(max_size=20), max_size=6), cuts=CUTS)
def test_no_split_of_any_mixture_changes_what_is_relayed_or_found(pieces: list[bytes], cuts: list[int]):
    stream = b"".join(pieces)
    assert relayed(stream, cuts) == relayed(stream, [])
