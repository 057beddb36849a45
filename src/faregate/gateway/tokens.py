"""Signed tokens: verified once, and believed for as long as they say."""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jwt
from jwt.warnings import InsecureKeyLengthWarning

from faregate.gateway.errors import ApiError

# Said once at the start, for each secret, in words that name the setting; not on the way of every request.
warnings.filterwarnings("ignore", category=InsecureKeyLengthWarning)

LEEWAY = 60
"""Seconds by which the clocks of Open WebUI and of this machine may differ."""

BELIEVED_SECONDS = 300.0
"""How long a token is believed that has no end, or a later one: as long as those of Open WebUI last by default."""

MOST_BELIEVED = 4_096
"""Tokens that are remembered. Each chat brings one, for its answer and for what Open WebUI asks beside it."""


class _Proof(NamedTuple):
    until: float
    claims: dict[str, Any]


class Tokens:
    """HS256 tokens that one of some secrets signed."""

    def __init__(
        self,
        secrets: Sequence[str],
        *,
        required: Sequence[str],
        issuer: str | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`required` are claims that a token must have, `issuer` who must have issued it, if that is not None."""
        self._secrets = secrets
        self._required = required
        self._issuer = issuer
        self._clock = clock
        self._proofs: dict[str, _Proof] = {}

    def claims(self, token: str) -> dict[str, Any]:
        """What `token` claims; not to be changed. Raises `ApiError` (403)."""
        now = self._clock()
        proof = self._proofs.get(token)
        if proof is not None and now < proof.until:
            return proof.claims
        claims = self._verified(token)
        until = now + BELIEVED_SECONDS
        if "exp" in claims:
            until = min(until, int(claims["exp"]) + LEEWAY)
        if len(self._proofs) >= MOST_BELIEVED:
            self._proofs.clear()
        self._proofs[token] = _Proof(until, claims)
        return claims

    def _verified(self, token: str) -> dict[str, Any]:
        failure = "it is not signed with a secret that this gateway knows"
        for secret in self._secrets:
            try:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    secret,
                    algorithms=["HS256"],
                    issuer=self._issuer,
                    leeway=LEEWAY,
                    options={"require": list(self._required), "verify_aud": False},
                )
            except jwt.InvalidSignatureError:
                continue
            except jwt.ExpiredSignatureError:
                failure = "it has expired; check the clocks of both machines"
            except jwt.InvalidIssuerError:
                failure = "it was not issued by Open WebUI"
            except jwt.MissingRequiredClaimError as error:
                failure = f"it lacks the claim {error.claim}"
            except jwt.InvalidTokenError:
                failure = "it cannot be read as an HS256 token"
            else:
                return claims
            break
        raise ApiError(
            403,
            f"The identity that this request carries is refused: {failure}.",
            "permission_error",
            "identity_refused",
        )
