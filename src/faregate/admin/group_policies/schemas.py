"""The policy of a group, as the admin API says it."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from faregate.policy.model import GroupPolicy

_HIGHEST = 1_000_000


class GroupPolicyBody(BaseModel):
    """Which policy a group has. Among a person's groups the highest `priority` wins."""

    model_config = ConfigDict(extra="forbid")

    group_name: Annotated[StrictStr, Field(min_length=1, max_length=500)]
    policy_id: StrictStr
    priority: Annotated[StrictInt, Field(ge=-_HIGHEST, le=_HIGHEST)] = 0

    @classmethod
    def of(cls, rule: GroupPolicy) -> Self:
        """`rule` in the words of the API."""
        return cls(group_name=rule.group, policy_id=rule.policy_id, priority=rule.priority)

    def rule(self) -> GroupPolicy:
        """What the API's words mean."""
        return GroupPolicy(group=self.group_name, policy_id=self.policy_id, priority=self.priority)
