"""A person, as the admin API says it."""

from typing import Self

from pydantic import BaseModel, ConfigDict, StrictBool, StrictStr

from faregate.admin.formats import instant
from faregate.directory import Directory, User


class UserOut(BaseModel):
    """A person. `policy_id` is the assigned policy, `effective_policy_id` the one that applies."""

    id: str
    connection: str
    subject: str
    email: str | None
    name: str | None
    role: str | None
    groups: list[str]
    is_active: bool
    policy_id: str | None
    effective_policy_id: str
    created_at: str
    last_seen_at: str

    @classmethod
    def of(cls, user: User, directory: Directory) -> Self:
        """`user` as `directory` knows it now."""
        return cls(
            id=user.id,
            connection=user.connection,
            subject=user.subject,
            email=user.email,
            name=user.name,
            role=user.role,
            groups=list(user.groups),
            is_active=user.is_active,
            policy_id=user.policy_id,
            effective_policy_id=directory.resolve(user).policy.id,
            created_at=instant(user.created_at),
            last_seen_at=instant(user.last_seen_at),
        )


class UserPatch(BaseModel):
    """What an administrator may decide about a person. A field that is absent stays as it is."""

    model_config = ConfigDict(extra="forbid")

    is_active: StrictBool = True
    policy_id: StrictStr | None = None
