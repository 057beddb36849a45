"""What the Kubernetes manifests set: settings of Faregate and of Open WebUI, and secrets, which are never in a file."""

import json
import re
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from api_server import ApiServer
from known import FAREGATE, OPEN_WEBUI
from manifests import (
    K8S,
    ROOT,
    Manifests,
    containers,
    image_of,
    name_of,
    pod,
    secret_keys,
    section,
)

from faregate.settings import load_settings

GIVEN = "OPENROUTER_API_KEY"
"""The one key of ai-secrets that the first run's command makes; the Job makes the others."""
SEVERAL = "OPENROUTER_API_KEYS"
"""What may be given in its place."""


def test_every_variable_of_the_gateway_is_one_of_its_settings(manifests: Manifests):
    for container in containers(manifests.one("Deployment", "faregate")):
        assert manifests.environment(container).keys() <= FAREGATE


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        ({GIVEN: "sk-or-v1-tests"}, ["sk-or-v1-tests"]),
        ({SEVERAL: "main=sk-or-v1-one@3,spare=sk-or-v1-two"}, ["sk-or-v1-one", "sk-or-v1-two"]),
    ],
    ids=["with one key", "with several keys"],
)
def test_the_gateway_takes_the_settings_that_the_manifests_give_it(
    manifests: Manifests, given: dict[str, str], keys: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    for name in FAREGATE:
        monkeypatch.delenv(name, raising=False)
    secret = made(tmp_path, given)
    for name, value in manifests.filled(manifests.serving("faregate"), secret).items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert [one.key.get_secret_value() for one in settings.upstream_keys()] == keys
    assert settings.identity == "jwt"
    assert settings.redis_url is not None
    assert settings.database_url is not None
    assert [one.name for one in settings.connections()] == ["openwebui"]
    # What Open WebUI signs with, and the key that it comes with, are known here.
    assert settings.jwt_secrets() == (secret["FORWARD_USER_INFO_HEADER_JWT_SECRET"],)
    assert settings.connections()[0].key.get_secret_value() == secret["OPENWEBUI_CONNECTION_KEY"]


def test_every_variable_of_open_webui_is_one_that_it_reads(manifests: Manifests):
    users = [
        (workload, container)
        for workload in manifests.workloads()
        for container in containers(workload)
        if image_of(container) == "open-webui"
    ]
    assert len(users) >= 3
    for workload, container in users:
        assert manifests.environment(container).keys() <= OPEN_WEBUI, name_of(workload)


def test_nothing_of_open_webui_goes_around_the_gateway(manifests: Manifests):
    environment = manifests.environment(manifests.serving("open-webui"))
    addresses = {name: value for name, value in environment.items() if re.search(r"API_BASE_URLS?$", name)}
    assert len(addresses) == 6
    assert set(addresses.values()) == {"http://faregate:8080/v1"}
    assert environment["ENABLE_DIRECT_CONNECTIONS"] == environment["ENABLE_OLLAMA_API"] == "false"


def test_open_webui_says_who_asks_for_what_in_a_signed_way(manifests: Manifests):
    environment = manifests.environment(manifests.serving("open-webui"))
    assert environment["ENABLE_FORWARD_USER_INFO_HEADERS"] == "true"
    assert "FORWARD_USER_INFO_HEADER_JWT_SECRET" in environment
    assert json.loads(environment["OPENAI_API_CONFIGS"])["0"]["headers"] == {
        "X-Faregate-Task": "{{TASK}}",
        "X-Faregate-Groups": "{{USER_GROUPS}}",
    }


def test_what_replicas_of_open_webui_share_is_shared(manifests: Manifests):
    environment = manifests.environment(manifests.serving("open-webui"))
    assert environment["STORAGE_PROVIDER"] == "s3"
    assert environment["VECTOR_DB"] == "pgvector"
    assert environment["WEBSOCKET_MANAGER"] == "redis"
    assert environment["ENABLE_BASE_MODELS_CACHE"] == "true"
    for name in ("WEBUI_SECRET_KEY", "DATABASE_URL", "REDIS_URL", "WEBSOCKET_REDIS_URL"):
        assert environment[name]["secretKeyRef"]["name"] == "ai-secrets"
    volumes = pod(manifests.one("Deployment", "open-webui"))["spec"]["volumes"]
    assert {kind for volume in volumes for kind in volume} == {"name", "emptyDir", "configMap"}


def test_every_key_of_the_secret_is_given_or_made_and_documented(minikube: Manifests, tmp_path: Path):
    used = set(secret_keys(minikube.all))
    assert {name for name, _, _ in used} == {"ai-secrets"}
    assert {key for _, key, optional in used if optional} == {SEVERAL}
    keys = {key for _, key, _ in used}
    assert keys - {SEVERAL} == made(tmp_path, {GIVEN: "sk-or-v1-tests"}).keys()
    text = section((ROOT / "docs/deployment.md").read_text(), "Kubernetes")
    rows = set(re.findall(r"^\| `([A-Z0-9_]+)` \|", text, re.MULTILINE))
    assert keys <= rows


def test_production_asks_for_no_key_that_a_first_run_does_not_have(minikube: Manifests, production: Manifests):
    assert set(secret_keys(production.all)) < set(secret_keys(minikube.all))


def test_every_variable_of_both_programs_is_documented(manifests: Manifests):
    text = (ROOT / "docs/deployment.md").read_text() + (ROOT / "docs/settings.md").read_text()
    # Families are documented together, such as `RAG_OPENAI_*`.
    documented = set(re.findall(r"`([A-Z][A-Z0-9_*]+)(?:=[^`]*)?`", text)) - {"S3_*"}
    for name in ("faregate", "open-webui"):
        for variable in manifests.environment(manifests.serving(name)):
            assert any(fnmatchcase(variable, one) for one in documented), variable


def test_the_job_adds_what_the_secret_lacks_and_changes_nothing_that_is_there(tmp_path: Path):
    first = made(tmp_path, {GIVEN: "sk-or-v1-tests", "REDIS_PASSWORD": "chosen"})
    assert first[GIVEN] == "sk-or-v1-tests"
    assert first["OPENWEBUI_REDIS_URL"] == "redis://:chosen@redis:6379/1"
    assert made(tmp_path, first) == first
    second = made(tmp_path, {GIVEN: "sk-or-v1-tests"})
    random = {name for name, value in first.items() if re.fullmatch(r"[0-9a-f]{64}", value)}
    assert len(random) >= 9
    assert [name for name in random if first[name] == second[name]] == []


def test_with_several_keys_the_job_makes_the_single_one_empty_and_does_so_once(tmp_path: Path):
    several = {SEVERAL: "main=sk-or-v1-one,spare=sk-or-v1-two"}
    first = made(tmp_path, several)
    assert first[GIVEN] == ""
    assert first[SEVERAL] == several[SEVERAL]
    assert made(tmp_path, first) == first


def test_the_job_says_what_to_do_where_there_is_no_secret(tmp_path: Path):
    with ApiServer(tmp_path, None) as api:
        ended = api.run(K8S / "base/scripts/make_secrets.py")
    assert ended.returncode == 1
    assert "kubectl -n tests create secret generic ai-secrets --from-literal=OPENROUTER_API_KEY=" in ended.stderr


def test_the_job_does_not_write_over_a_secret_that_changed_meanwhile(tmp_path: Path):
    with ApiServer(tmp_path, {GIVEN: "sk-or-v1-tests"}, changing=True) as api:
        ended = api.run(K8S / "base/scripts/make_secrets.py")
        assert (ended.returncode, "409" in ended.stderr) == (1, True)
        assert api.secret.keys() == {GIVEN}


def test_no_file_holds_a_secret(manifests: Manifests):
    assert manifests.of("Secret") == []
    for workload in manifests.workloads():
        for container in containers(workload):
            for name, value in manifests.environment(container).items():
                if re.search(r"SECRET|PASSWORD|_KEY(S|_ID)?$|_TOKEN|DATABASE_URL|REDIS_URL", name):
                    assert isinstance(value, dict), f"{name_of(workload)}: {name}"
                    assert "secretKeyRef" in value, f"{name_of(workload)}: {name}"
    for path in K8S.rglob("*"):
        if path.is_file():
            # Long hexadecimal or base64 text would be one, and a URL with a password in it.
            assert not re.search(r"[0-9a-f]{32}|[A-Za-z0-9+/]{40,}=|://\w*:[^{@\s]+@", path.read_text()), path


def made(folder: Path, known: dict[str, str]) -> dict[str, str]:
    """What ai-secrets has after the Job, if it had `known` before."""
    with ApiServer(folder, known) as api:
        ended: subprocess.CompletedProcess[str] = api.run(K8S / "base/scripts/make_secrets.py")
        assert ended.returncode == 0, ended.stderr
        # Names alone: what a Job prints is kept in logs.
        assert not [value for value in api.secret.values() if value and value in ended.stdout]
        return api.secret
