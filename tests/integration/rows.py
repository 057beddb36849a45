"""People and records to write."""

from faregate.directory import User, user_id_of
from faregate.records import Facts, Status, UsageRecord

NOON = 1_800_014_400.0

BY = {"actor": "admin key from 10.1.2.3", "at": NOON}
"""Which administrator changed something, and when."""


def person(subject="u-1", *, seen=NOON, **more):
    values = {
        "id": user_id_of("owui", subject),
        "connection": "owui",
        "subject": subject,
        "email": f"{subject}@example.com",
        "name": "Zoë 山田",
        "role": "user",
        "groups": ("physics, applied", "staff"),
        "is_active": True,
        "policy_id": None,
        "created_at": NOON,
        "last_seen_at": seen,
    }
    return User(**(values | more))


def record(request_id="r-1", *, at=NOON, user_id="zoe", model="openai/gpt-4o", status=Status.COMPLETED, **more):
    facts = {"email": "zoe@example.com", "groups": ("staff",), "candidates": (model,), "rules": ("policy calm",)}
    facts |= {name: more.pop(name) for name in list(more) if name in Facts.__struct_fields__}
    known = Facts(request_id, at, "owui", user_id, policy_id="calm", model=model, **facts)
    return UsageRecord(known, status, **more)
