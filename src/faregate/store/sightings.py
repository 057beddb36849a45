"""The statement that notes on PostgreSQL when people were last seen who changed in nothing else.

Most people who are to be written are of that kind: looking for each in all tables takes many times as long.
"""

from collections.abc import Iterable

import msgspec

from faregate.directory import User
from faregate.store.types import keepable, kept, microseconds_of


class _Sighting(msgspec.Struct, gc=False):
    id: str
    connection: str
    subject: str
    email: str | None
    name: str | None
    role: str | None
    groups: list[str]
    at: int


# Whoever was seen is looked up by id, one by one: OFFSET keeps the planner from joining everybody there is instead.
# Locked in the order of `users`. Who was written after the statement began has another version by then, and may be in
# other groups than it saw: they are left out.
NOTE = """
WITH seen AS (
    SELECT * FROM json_to_recordset(CAST(CAST($1 AS text) AS json)) AS _
    (id text, connection text, subject text, email text, name text, role text, groups text[], at bigint)
),
same AS MATERIALIZED (
    SELECT known.id, known.version, seen.at FROM seen CROSS JOIN LATERAL (
        SELECT users.*, users.xmin AS version, ARRAY(
            SELECT group_name FROM memberships WHERE user_id = users.id ORDER BY group_name COLLATE "C"
        ) AS groups
        FROM users WHERE users.id = seen.id OFFSET 0
    ) AS known
    WHERE (known.connection, known.subject, known.email, known.name, known.role, known.groups)
    IS NOT DISTINCT FROM (seen.connection, seen.subject, seen.email, seen.name, seen.role, seen.groups)
),
locked AS MATERIALIZED (
    SELECT users.id, same.at FROM users JOIN same ON same.id = users.id AND same.version = users.xmin
    ORDER BY users.connection COLLATE "C", users.subject COLLATE "C" FOR NO KEY UPDATE OF users
),
noted AS (
    UPDATE users
    SET last_seen_at = greatest(last_seen_at, timestamptz 'epoch' + locked.at * interval '1 microsecond')
    FROM locked WHERE locked.id = users.id RETURNING users.id
)
SELECT array_agg(id) FROM noted
"""
"""Notes when those of a `document` were last seen whom the database has in the same state.

Returns their ids, null if there are none. To be run in a transaction of its own: people are not the first in the order
of locks (see `users`).
"""


def document(people: Iterable[User]) -> str:
    """`people`, each once, for the statement."""
    return msgspec.json.encode([_sighting(user) for user in people]).decode()


def _sighting(user: User) -> _Sighting:
    return _Sighting(
        user.id,
        keepable(user.connection),
        keepable(user.subject),
        kept(user.email),
        kept(user.name),
        kept(user.role),
        # In the order of code points, as the statement has them.
        sorted({keepable(group) for group in user.groups}),
        microseconds_of(user.last_seen_at),
    )
