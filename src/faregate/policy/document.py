"""The JSON document of a policy: read with every contradiction refused by the name of its field, and written."""

import re
import unicodedata
from decimal import Decimal
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictStr,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from faregate.policy.model import DEFAULT_MAX_OUTPUT_TOKENS, Enforcement, Limit, Meter, Policy, Scope, Window
from faregate.policy.money import MAX_COUNT, parse_usd, usd_decimal

_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.IGNORECASE | re.ASCII)
_LONGEST_NAME = 200
_LONGEST_PATTERN = 200
_MOST_ENTRIES = 500

_LONG_FORM = frozenset({"limits", "models"})
_SHORT_FORM = ("daily_token_limit", "monthly_token_limit", "allowed_models")


class InvalidPolicy(ValueError):
    """The document is not a policy: `field` is where (`limits[0].amount`), `message` is why."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


def _wrong(message: str, field: str = "") -> PydanticCustomError:
    """A refusal in our own words; `field` leads on from the place that pydantic knows."""
    return PydanticCustomError("policy", "{reason}", {"reason": message, "field": field})


def _whole(value: object) -> int:
    # JSON numbers such as 1e6 arrive as Decimal or float, by the decoder.
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise _wrong("must be a whole number")
    exact = Decimal(str(value)) if isinstance(value, float) else value
    if isinstance(exact, Decimal) and not exact.is_finite():
        raise _wrong("must be a whole number")
    if exact < 0:
        raise _wrong("must not be negative")
    if exact > MAX_COUNT:
        raise _wrong(f"must not be above {MAX_COUNT}")
    if exact != int(exact):
        raise _wrong("must be a whole number")
    return int(exact)


def _printable(text: str) -> str:
    # NUL and lone surrogates cannot be stored; other control characters only serve to deceive.
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in text):
        raise _wrong("must not contain control characters")
    return text


def _identifier(text: str) -> str:
    if not _ID.fullmatch(text):
        raise _wrong('must be 1 to 64 letters, digits, ".", "_" or "-", beginning with a letter or digit')
    return text


def _name(text: str) -> str:
    if not text.strip():
        raise _wrong("must not be empty")
    if len(text) > _LONGEST_NAME:
        raise _wrong(f"must not be longer than {_LONGEST_NAME} characters")
    return _printable(text)


def _pattern(text: str) -> str:
    if not text:
        raise _wrong("must not be an empty pattern")
    if len(text) > _LONGEST_PATTERN:
        raise _wrong(f"must not be longer than {_LONGEST_PATTERN} characters")
    if any(character.isspace() for character in text):
        raise _wrong("must not contain spaces: no model name has any")
    return _printable(text).lower()


def _distinct(patterns: list[str]) -> list[str]:
    return list(dict.fromkeys(patterns))


Count = Annotated[int, BeforeValidator(_whole), WithJsonSchema({"type": "integer", "minimum": 0})]
Pattern = Annotated[StrictStr, AfterValidator(_pattern)]
Patterns = Annotated[list[Pattern], Field(max_length=_MOST_ENTRIES), AfterValidator(_distinct)]
Amount = Annotated[int, WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}]})]


class LimitDocument(BaseModel):
    """One limit. `amount` is in dollars for `usd` (a decimal string or a number), else a whole number."""

    model_config = ConfigDict(extra="forbid")

    meter: Meter
    window: Window | None = Field(default=None, validate_default=True)
    amount: Amount
    scope: Scope = Scope.USER
    models: Patterns = []

    @field_validator("window")
    @classmethod
    def _window_suits_meter(cls, window: Window | None, info: ValidationInfo) -> Window | None:
        meter = info.data.get("meter")
        if meter is Meter.CONCURRENT and window is not None:
            raise _wrong("must be left out: requests that run at once have no window")
        if meter is not None and meter is not Meter.CONCURRENT and window is None:
            raise _wrong(f"is missing: one of {', '.join(Window)}")
        return window

    @field_validator("amount", mode="before")
    @classmethod
    def _amount_on_counter(cls, amount: object, info: ValidationInfo) -> int:
        if info.data.get("meter") is not Meter.USD:
            return _whole(amount)
        try:
            return parse_usd(amount)
        except ValueError as error:
            raise _wrong(str(error)) from error

    def limit(self) -> Limit:
        """The limit that this says."""
        return Limit(self.meter, self.window, self.amount, self.scope, tuple(sorted(self.models)))


class ModelsDocument(BaseModel):
    """Which models may be used, as patterns. No `allow` is every model; `deny` wins."""

    model_config = ConfigDict(extra="forbid")

    allow: Patterns = []
    deny: Patterns = []

    @field_validator("deny")
    @classmethod
    def _not_allowed_as_well(cls, deny: list[str], info: ValidationInfo) -> list[str]:
        for pattern in deny:
            if pattern in info.data.get("allow", ()):
                raise _wrong(f'must not repeat "{pattern}" of models.allow')
        return deny


class PolicyDocument(BaseModel):
    """A policy, in the long form (`limits`, `models`) or in the short one (`daily_token_limit` ...), not both."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[StrictStr, AfterValidator(_identifier)]
    name: Annotated[StrictStr, AfterValidator(_name)] = ""
    limits: Annotated[list[LimitDocument], Field(max_length=_MOST_ENTRIES)] = []
    models: ModelsDocument = Field(default_factory=ModelsDocument)
    max_output_tokens: Count = DEFAULT_MAX_OUTPUT_TOKENS
    enforcement: Enforcement = Enforcement.STRICT
    daily_token_limit: Count | None = None
    monthly_token_limit: Count | None = None
    allowed_models: Patterns | None = None

    @field_validator("limits")
    @classmethod
    def _each_said_once(cls, limits: list[LimitDocument]) -> list[LimitDocument]:
        seen: dict[object, int] = {}
        for index, entry in enumerate(limits):
            limit = entry.limit()
            first = seen.setdefault((limit.meter, limit.window, limit.scope, limit.models), index)
            if first != index:
                raise _wrong(f"is about the same meter, window, scope and models as limits[{first}]", f"[{index}]")
        return limits

    @field_validator("max_output_tokens")
    @classmethod
    def _answers_have_a_token(cls, tokens: int) -> int:
        if tokens < 1:
            raise _wrong("must be at least 1")
        return tokens

    @model_validator(mode="after")
    def _in_one_form(self) -> Self:
        short = [field for field in _SHORT_FORM if field in self.model_fields_set]
        long = sorted(_LONG_FORM & self.model_fields_set)
        if short and long:
            raise _wrong(f"belongs to the short form and cannot be combined with {long[0]}", short[0])
        return self

    def policy(self) -> Policy:
        """The policy that this says."""
        limits = [entry.limit() for entry in self.limits]
        for window, tokens in ((Window.DAY, self.daily_token_limit), (Window.MONTH, self.monthly_token_limit)):
            if tokens is not None:
                limits.append(Limit(Meter.TOKENS, window, tokens))
        return Policy(
            id=self.id,
            name=self.name or self.id,
            limits=tuple(limits),
            allow=tuple(self.allowed_models or self.models.allow),
            deny=tuple(self.models.deny),
            max_output_tokens=self.max_output_tokens,
            enforcement=self.enforcement,
        )


def parse_policy(data: object) -> Policy:
    """The policy of a decoded JSON document. Raises `InvalidPolicy` naming the first field that is wrong.

    Numbers may come from any decoder (int, Decimal, float): dollars are read by their decimal spelling.
    """
    try:
        return PolicyDocument.model_validate(data).policy()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InvalidPolicy(_field(first), _message(first)) from None


def document_of(policy: Policy) -> dict[str, object]:
    """`policy` in the long form, ready for JSON: dollars as decimal strings, other amounts as integers."""
    return {
        "id": policy.id,
        "name": policy.name,
        "limits": [_limit_document(limit) for limit in policy.limits],
        "models": {"allow": list(policy.allow), "deny": list(policy.deny)},
        "max_output_tokens": policy.max_output_tokens,
        "enforcement": policy.enforcement.value,
    }


def _limit_document(limit: Limit) -> dict[str, object]:
    window = {} if limit.window is None else {"window": limit.window.value}
    return {
        "meter": limit.meter.value,
        **window,
        "amount": usd_decimal(limit.amount) if limit.meter is Meter.USD else limit.amount,
        "scope": limit.scope.value,
        "models": list(limit.models),
    }


def _field(error: ErrorDetails) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"])
    inner = str(error.get("ctx", {}).get("field", ""))
    if inner and not inner.startswith("["):
        inner = f".{inner}"
    return (path + inner).removeprefix(".") or "policy"


def _message(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    match error["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return "is not a known field"
        case "enum":
            return f"must be {context['expected']}"
        case "string_type":
            return "must be a string"
        case "list_type":
            return "must be a list"
        case "model_type" | "dict_type":
            return "must be an object"
        case "too_long":
            return f"must not have more than {context['max_length']} entries"
        case _:
            return error["msg"]
