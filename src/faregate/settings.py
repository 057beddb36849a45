"""Every setting of Faregate: its name, its default, its meaning. Read from the environment, then from `.env`."""

import hashlib
import os
import re
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from faregate.proxies import Proxy, proxy_for

OPENROUTER_URL = "https://openrouter.ai/api/v1"


class SettingsError(Exception):
    """A setting is wrong. The message is one sentence that names the variable and what it should be."""


class IdentityMode(StrEnum):
    """How a connection proves who the person is."""

    HEADERS = "headers"
    JWT = "jwt"
    SESSION = "session"
    NONE = "none"


class LogMode(StrEnum):
    """`metadata` writes one line per request, without content; `off` writes none."""

    METADATA = "metadata"
    OFF = "off"


class LogLevel(StrEnum):
    """The least severe message that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class OnOutage(StrEnum):
    """What happens to requests while the shared ledger is away: `closed` refuses them, `open` serves them unheld."""

    CLOSED = "closed"
    OPEN = "open"


class DatabaseMigrate(StrEnum):
    """Who brings the schema of the database up to date: a start does it (`auto`), or an administrator (`manual`)."""

    AUTO = "auto"
    MANUAL = "manual"


class OnClientLeft(StrEnum):
    """What happens upstream when the client of a stream leaves: `auto` leaves too where that stops the bill and reads
    on to the usage elsewhere, `drain` always reads on."""

    AUTO = "auto"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class Connection:
    """One client of the gateway, known by its key."""

    name: str
    key: SecretStr


@dataclass(frozen=True, slots=True)
class UpstreamKey:
    """One key to OpenRouter. Of several, each gets its share of the requests: `weight` of the sum of all."""

    name: str
    key: SecretStr
    weight: int = 1


Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Moments = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
"""Seconds for which every request may have to wait: few."""

UPSTREAM_KEY = re.compile(
    r"(?:(?P<name>(?!sk-)[A-Za-z0-9][A-Za-z0-9._-]{0,39})=)?(?P<key>[!-<>?A-~]+)(?:@(?P<weight>[1-9][0-9]{0,3}))?"
)
RETENTION = re.compile(r"([1-9][0-9]{0,3}) (day|month)s?")
SHORTEST_RETENTION_DAYS = 31
"""Of the longest calendar window, by month, the counters are built anew from the records."""

REDIS_URL = re.compile(r"(?:(?:rediss?|valkeys?)(?:\+sentinel|\+cluster)?://[^\s/]|unix://(?:[^\s/]*@)?/)\S*")


class _Environment(EnvSettingsSource):
    """The environment, as curl reads it where names of both cases are in use: for proxies.

    Of two the lower-case one wins. HTTP_PROXY is not read: under CGI whoever sends a header named Proxy would set it.
    """

    def __init__(self, settings: type[BaseSettings]) -> None:
        super().__init__(settings)
        # Upper case sorts before lower case.
        found = sorted((name, value) for name, value in os.environ.items() if value and name != "HTTP_PROXY")
        self.env_vars = {name.lower(): value for name, value in found}


class Settings(BaseSettings):
    """The settings, validated. Secrets are `SecretStr`: they do not show in logs or errors."""

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", env_ignore_empty=True, extra="ignore", frozen=True
    )

    host: str = "0.0.0.0"  # noqa: S104 - a gateway is there to be reached
    port: int = Field(default=8080, ge=0, le=65_535)
    workers: int = Field(default=1, ge=1, le=256)
    max_in_flight: int = Field(default=2000, ge=1, le=1_000_000)
    data_dir: Path = Path("data")
    database_url: SecretStr | None = None
    database_migrate: DatabaseMigrate = DatabaseMigrate.AUTO
    usage_retention: str = "forever"
    redis_url: SecretStr | None = None
    redis_prefix: str = "faregate"
    redis_connect_timeout: Moments = 0.05
    redis_call_timeout: Moments = 0.05
    ledger_on_outage: OnOutage = OnOutage.CLOSED

    openrouter_api_key: SecretStr | None = None
    openrouter_api_keys: SecretStr | None = None
    openrouter_management_key: SecretStr | None = None
    openrouter_base_url: str = OPENROUTER_URL
    openrouter_http_referer: str | None = None
    openrouter_x_title: str = "Faregate"
    https_proxy: SecretStr | None = None
    http_proxy: SecretStr | None = None
    all_proxy: SecretStr | None = None
    no_proxy: str = ""

    admin_api_key: SecretStr | None = None
    gateway_api_keys: SecretStr | None = None
    identity: IdentityMode = IdentityMode.HEADERS
    openwebui_jwt_secrets: SecretStr | None = None
    webui_secret_key: SecretStr | None = None

    timezone: str = "UTC"
    support_contact: str = "your administrator"
    log_mode: LogMode = LogMode.METADATA
    log_level: LogLevel = LogLevel.INFO

    shutdown_grace: Seconds = 30.0
    upstream_connect_timeout: Seconds = 5.0
    upstream_first_byte_timeout: Seconds = 60.0
    upstream_idle_timeout: Seconds = 300.0
    upstream_queue_seconds: float = Field(default=10.0, ge=0, le=600, allow_inf_nan=False)
    client_left: OnClientLeft = OnClientLeft.AUTO
    reconcile_delays: str = "2,5,15,60,300,900,3600"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Where values come from, what wins first."""
        return init_settings, _Environment(settings_cls), dotenv_settings, file_secret_settings

    @field_validator(
        "identity", "log_mode", "log_level", "ledger_on_outage", "database_migrate", "client_left", mode="before"
    )
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("should be an IANA time zone such as Europe/Amsterdam or UTC") from None
        return value

    @field_validator("openrouter_base_url")
    @classmethod
    def _http_url(cls, value: str) -> str:
        sentence = "should be an http:// or https:// URL such as https://openrouter.ai/api/v1"
        try:
            parts = urlsplit(value)
            # `.port` is parsed on access, and raises on its own.
            valid = parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError:
            raise ValueError(sentence) from None
        if not valid or parts.query or parts.fragment or parts.username:
            raise ValueError(sentence)
        return value.rstrip("/")

    @field_validator("openrouter_http_referer", "openrouter_x_title")
    @classmethod
    def _header_text(cls, value: str | None) -> str | None:
        if value is not None and not (value.isprintable() and value.isascii()):
            raise ValueError("should be printable ASCII, since it travels as an HTTP header")
        return value

    @field_validator("openrouter_api_key", "openrouter_management_key", "admin_api_key")
    @classmethod
    def _header_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        text = value.get_secret_value().strip()
        if not (text.isprintable() and text.isascii()) or " " in text:
            raise ValueError("should be printable ASCII without spaces, since it travels as an HTTP header")
        return SecretStr(text)

    @field_validator("database_url")
    @classmethod
    def _database(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.match(r"(sqlite:///|postgres(ql)?://)", value.get_secret_value()):
            raise ValueError("should be sqlite:///path/to/file or postgresql://user:password@host/database")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not REDIS_URL.fullmatch(value.get_secret_value()):
            raise ValueError(
                "should be redis://host:6379/0, or begin with rediss://, unix:///, valkey://, valkeys://, "
                "redis+sentinel://, rediss+sentinel://, redis+cluster:// or rediss+cluster://, and have no spaces"
            )
        return value

    @field_validator("redis_prefix")
    @classmethod
    def _hash_tag(cls, value: str) -> str:
        # Braces would end the hash tag that keeps all keys of a deployment in one slot of a cluster.
        if not re.fullmatch(r"[A-Za-z0-9.:_-]{1,64}", value):
            raise ValueError("should be 1 to 64 letters, digits or .:_- such as faregate")
        return value

    @field_validator("usage_retention")
    @classmethod
    def _retention(cls, value: str) -> str:
        value = " ".join(value.lower().split())
        if value != "forever":
            parts = RETENTION.fullmatch(value)
            if parts is None or (parts[2] == "day" and int(parts[1]) < SHORTEST_RETENTION_DAYS):
                raise ValueError(
                    f"should be forever, or {SHORTEST_RETENTION_DAYS} days or more such as 400 days or 13 months"
                )
        return value

    @field_validator("reconcile_delays")
    @classmethod
    def _delays(cls, value: str) -> str:
        try:
            delays = [float(part) for part in value.split(",")]
        except ValueError:
            delays = []
        if not delays or any(not 0 < delay <= 86_400 for delay in delays):
            raise ValueError("should be seconds, comma-separated, such as 2,5,15,60,300,900,3600")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.identity is IdentityMode.JWT and not self.jwt_secrets():
            raise ValueError(
                "OPENWEBUI_JWT_SECRETS should hold the value of FORWARD_USER_INFO_HEADER_JWT_SECRET of "
                "Open WebUI, since IDENTITY is jwt"
            )
        if self.identity is IdentityMode.SESSION and self.webui_secret_key is None:
            raise ValueError(
                "WEBUI_SECRET_KEY should hold the value that Open WebUI runs with, since IDENTITY is session"
            )
        if self.openrouter_api_key is not None and self.openrouter_api_keys is not None:
            raise ValueError(
                "OPENROUTER_API_KEYS should hold every key, and OPENROUTER_API_KEY none, since both are set: "
                "unset one of the two"
            )
        if not self.upstream_keys() and self.openrouter_base_url != OPENROUTER_URL:
            raise ValueError(
                "OPENROUTER_API_KEY should hold a key for OPENROUTER_BASE_URL; unset both to use the built-in simulator"
            )
        if self.workers > 1 and self.redis_url is None:
            raise ValueError(
                "WORKERS should be 1: the in-process ledger counts in one process, and a second one would "
                "allow every limit twice; set REDIS_URL to let processes share one ledger"
            )
        self.connections()
        if self.upstream_keys():
            self.proxy_for(self.openrouter_base_url)
        return self

    def zone(self) -> ZoneInfo:
        """The zone in which calendar windows begin and end."""
        return ZoneInfo(self.timezone)

    def kept_since(self, now: float) -> float | None:
        """Before when records are dropped, at `now` (both seconds since the epoch); None if they are kept for ever."""
        parts = RETENTION.fullmatch(self.usage_retention)
        if parts is None:
            return None
        moment, number = datetime.fromtimestamp(now, UTC), int(parts[1])
        if parts[2] == "day":
            return (moment - timedelta(days=number)).timestamp()
        year, month = divmod(moment.year * 12 + moment.month - 1 - number, 12)
        month += 1
        return moment.replace(year=year, month=month, day=min(moment.day, monthrange(year, month)[1])).timestamp()

    def delays(self) -> tuple[float, ...]:
        """Seconds between the tries of a late settlement."""
        return tuple(float(part) for part in self.reconcile_delays.split(","))

    def jwt_secrets(self) -> tuple[str, ...]:
        """The secrets that may have signed a person's token; several while they are rotated."""
        if self.openwebui_jwt_secrets is None:
            return ()
        parts = self.openwebui_jwt_secrets.get_secret_value().split(",")
        return tuple(part.strip() for part in parts if part.strip())

    def upstream_keys(self) -> tuple[UpstreamKey, ...]:
        """The keys of OPENROUTER_API_KEYS, each `key` or `name=key`, with its weight as `@N`; or the single one.

        Without a name it is called by a fingerprint of the key. Raises ValueError, naming the variable, for an entry
        that is none of these, or stands twice.
        """
        if self.openrouter_api_keys is None:
            return () if self.openrouter_api_key is None else (UpstreamKey("default", self.openrouter_api_key),)
        found: dict[str, UpstreamKey] = {}
        names: set[str] = set()
        for position, part in enumerate(self.openrouter_api_keys.get_secret_value().split(","), start=1):
            entry = UPSTREAM_KEY.fullmatch(part.strip())
            if entry is None:
                raise ValueError(
                    "OPENROUTER_API_KEYS should be keys of printable ASCII without spaces, comma-separated, each "
                    f"optionally NAME=KEY, and @N with a weight from 1 to 9999 behind it; entry {position} is not"
                )
            key, weight = entry["key"], int(entry["weight"] or 1)
            name = entry["name"] or f"key-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
            if key in found or name in names:
                raise ValueError(
                    f"OPENROUTER_API_KEYS should hold each name and key once; entry {position} repeats one"
                )
            found[key] = UpstreamKey(name, SecretStr(key), weight)
            names.add(name)
        return tuple(found.values())

    def proxy_for(self, url: str) -> Proxy | None:
        """The proxy by which `url` is reached, None for none. Raises ValueError, naming the variable."""
        named = {name: getattr(self, name) for name in ("https_proxy", "http_proxy", "all_proxy")}
        return proxy_for(url, {name: value.get_secret_value() for name, value in named.items() if value}, self.no_proxy)

    def connections(self) -> tuple[Connection, ...]:
        """The connections of GATEWAY_API_KEYS, each `key` or `name:key`. Empty when none is configured.

        Raises ValueError, naming the variable, for an empty key or one that stands twice.
        """
        if self.gateway_api_keys is None:
            return ()
        found: dict[str, Connection] = {}
        names: set[str] = set()
        for position, part in enumerate(self.gateway_api_keys.get_secret_value().split(","), start=1):
            head, colon, tail = part.strip().partition(":")
            name, key = (head.strip(), tail.strip()) if colon else (f"connection-{position}", head)
            if not key or not name or " " in key or not (key.isprintable() and key.isascii()):
                raise ValueError(
                    "GATEWAY_API_KEYS should be keys of printable ASCII without spaces, comma-separated, "
                    f"each optionally name:key; entry {position} is not"
                )
            if key in found or name in names:
                raise ValueError(f"GATEWAY_API_KEYS should hold each name and key once; entry {position} repeats one")
            found[key] = Connection(name, SecretStr(key))
            names.add(name)
        return tuple(found.values())


def load_settings() -> Settings:
    """Read and validate the settings. Raises `SettingsError` with one sentence for the first that is wrong."""
    try:
        return Settings()
    except ValidationError as error:
        # The input is left out on purpose: it may be a secret.
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        variable = str(first["loc"][0]).upper() if first["loc"] else ""
        if not variable:
            raise SettingsError(f"{message}.") from None
        if not message.startswith("should"):
            message = message.removeprefix("Input ").partition(", unable")[0]
        raise SettingsError(f"{variable} {message}.") from None
    except UnicodeDecodeError:
        raise SettingsError("The file .env should be UTF-8 text.") from None
