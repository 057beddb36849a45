"""A policy, as the admin API says it. Reading one is `faregate.policy.document`; this only describes it."""

from pydantic import BaseModel

from faregate.policy.model import Enforcement, Meter, Scope, Window


class LimitOut(BaseModel):
    """One limit: dollars are decimal strings, tokens and requests are integers."""

    meter: Meter
    window: Window | None = None
    amount: str | int
    scope: Scope = Scope.USER
    models: list[str] = []


class ModelsOut(BaseModel):
    """Patterns of models; `deny` wins, an empty `allow` is every model."""

    allow: list[str] = []
    deny: list[str] = []


class PolicyOut(BaseModel):
    """A policy in its long form."""

    id: str
    name: str
    limits: list[LimitOut]
    models: ModelsOut
    max_output_tokens: int
    enforcement: Enforcement
