"""Complete the Secret `ai-secrets`: each key that it lacks is made at random, or of others, and never changed again.

Runs as the Job `secrets`, on nothing but Python's own library, with an account that may read and patch this one Secret.
"""

import base64
import json
import os
import secrets
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

NAME = "ai-secrets"
GIVEN = "OPENROUTER_API_KEY"
SEVERAL = "OPENROUTER_API_KEYS"
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

# Hexadecimal, since most become a part of a URL.
RANDOM = (
    "ADMIN_API_KEY",
    "FORWARD_USER_INFO_HEADER_JWT_SECRET",
    "OPENWEBUI_CONNECTION_KEY",
    "WEBUI_SECRET_KEY",
    "POSTGRES_PASSWORD",
    "FAREGATE_DATABASE_PASSWORD",
    "OPENWEBUI_DATABASE_PASSWORD",
    "REDIS_PASSWORD",
    "S3_ACCESS_KEY_ID",
    "S3_SECRET_ACCESS_KEY",
)
# Of the ones above, for the bundled services.
COMPOSED = {
    "GATEWAY_API_KEYS": "openwebui:{OPENWEBUI_CONNECTION_KEY}",
    "OPENWEBUI_JWT_SECRETS": "{FORWARD_USER_INFO_HEADER_JWT_SECRET}",
    "FAREGATE_DATABASE_URL": "postgresql://faregate:{FAREGATE_DATABASE_PASSWORD}@postgres:5432/faregate",
    "OPENWEBUI_DATABASE_URL": "postgresql://openwebui:{OPENWEBUI_DATABASE_PASSWORD}@postgres:5432/openwebui",
    "FAREGATE_REDIS_URL": "redis://:{REDIS_PASSWORD}@redis:6379/0",
    "OPENWEBUI_REDIS_URL": "redis://:{REDIS_PASSWORD}@redis:6379/1",
}


def missing(known: dict[str, str]) -> dict[str, str]:
    """What has to be added to the keys that are there; nothing that is there is changed."""
    made = {name: secrets.token_hex(32) for name in RANDOM if not known.get(name)}
    values = known | made
    # The gateway insists on it, and takes an empty one for none.
    if GIVEN not in known:
        made[GIVEN] = ""
    return made | {name: form.format(**values) for name, form in COMPOSED.items() if not known.get(name)}


def main() -> None:
    """Read the Secret, add what it lacks; if somebody changes it meanwhile, fail, and be started again."""
    server = os.environ.get("KUBERNETES_API", "https://kubernetes.default.svc")
    account = Path(os.environ.get("KUBERNETES_ACCOUNT", ACCOUNT))
    namespace = (account / "namespace").read_text()
    url = f"{server}/api/v1/namespaces/{namespace}/secrets/{NAME}"
    try:
        secret = ask(account, "GET", url)
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        secret = {}
    known = {name: base64.b64decode(value).decode() for name, value in (secret.get("data") or {}).items()}
    if not known.get(GIVEN) and not known.get(SEVERAL):
        sys.exit(
            f"The Secret {NAME} with {GIVEN} or {SEVERAL} is not in the namespace {namespace}. Make it: "
            f"kubectl -n {namespace} create secret generic {NAME} --from-literal={GIVEN}=..."
        )
    added = missing(known)
    if added:
        data = {name: base64.b64encode(value.encode()).decode() for name, value in added.items()}
        # With its version, the API server refuses the patch (409) where the Secret is another one by now.
        version = {"resourceVersion": secret["metadata"]["resourceVersion"]}
        ask(account, "PATCH", url, {"metadata": version, "data": data})
    print(f"{len(added)} keys were added to the Secret {NAME}: {', '.join(sorted(added)) or 'none was missing'}")


def ask(account: Path, method: str, url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask the API server, as the account of this pod. Raises HTTPError."""
    # The address is the cluster's own.
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), method=method)  # noqa: S310
    request.add_header("Authorization", f"Bearer {(account / 'token').read_text()}")
    request.add_header("Content-Type", "application/merge-patch+json")
    context = ssl.create_default_context(cafile=account / "ca.crt") if url.startswith("https") else None
    with urllib.request.urlopen(request, timeout=10, context=context) as answer:  # noqa: S310
        return json.load(answer)


main()
