"""The values of a usage record's row, as both databases take them."""

import json
from functools import lru_cache
from operator import attrgetter
from typing import Any

import msgspec

from faregate.records import Facts, Status, UsageRecord
from faregate.store.tables import usage_records
from faregate.store.types import Words, compact, keepable, microseconds_of

Values = tuple[Any, ...]
"""Of one row, in the order of `COLUMNS`: `ts` in microseconds since the epoch, `cost` as a Decimal, names as JSON."""

_OF_FACTS = ("request_id", "user_id", "email", "connection", "policy_id", "model", "task", "chat_id", "stream")
_OF_RECORD = tuple(name for name in UsageRecord.__struct_fields__ if name != "facts")
_MADE = ("ts", "groups", "rules", "models", "node", "facts")

COLUMNS = (*_OF_FACTS, *_OF_RECORD, *_MADE)
"""Those that a record has a value for; another one of the table gets its default, and keeps what it has."""

KEY = ("request_id", "ts")
"""The columns that a row is found by."""

_IS_WORDS = [isinstance(usage_records.c[name].type, Words) for name in COLUMNS]

_of_facts = attrgetter(*_OF_FACTS)
_of_record = attrgetter(*_OF_RECORD)
# Many people are in the same few groups, and ask the same few models.
_names = lru_cache(maxsize=4096)(compact)


def values_of(record: UsageRecord, node: str) -> Values:
    """The row of `record`; `node` is whose it is to settle it, if it is pending."""
    facts = record.facts
    made = (
        microseconds_of(facts.admitted_at),
        _names(facts.groups),
        _names(facts.rules),
        _names(record.counted_models()),
    )
    rest = (node, _kept(facts)) if record.status is Status.PENDING else (None, None)
    return (*_of_facts(facts), *_of_record(record), *made, *rest)


def cleaned(values: Values) -> Values:
    """`values`, with all text from somewhere else made `keepable`."""
    pairs = zip(values, _IS_WORDS, strict=True)
    return tuple(keepable(value) if is_words and value is not None else value for value, is_words in pairs)


def _kept(facts: Facts) -> str:
    # In ASCII, whose escapes any text can be written with.
    return json.dumps(msgspec.to_builtins(facts), separators=(",", ":"))
