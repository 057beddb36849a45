"""deploy/compose: what it says agrees with the program, and nothing in it is secret."""

import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import compose_file
import dockerfile
import httpx
import known
import pytest
from compose_file import FOLDER, environment, services
from dotenv import dotenv_values

from faregate.health import Health
from faregate.serving import SIMULATOR_PORT
from faregate.settings import OPENROUTER_URL, IdentityMode, Settings
from faregate.simulator.app import Options, create_app

DOCS = FOLDER.parents[1] / "docs"
GATEWAYS = ("gateway-1", "gateway-2")
FAREGATE = (*GATEWAYS, "migrate-faregate", "simulator")
IMAGE = "faregate:local"
OPEN_WEBUI = ("openwebui", "migrate-openwebui", "bucket")
SECRET = re.compile(r"SECRET|PASSWORD|TOKEN|AUTH$|(API|CONNECTION|ACCESS)_KEYS?(_ID)?$|_KEYS$")


def make_env(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run make-env of a copy of deploy/compose in `folder`."""
    for name in ("make-env", ".env.example"):
        if not (folder / name).exists():
            shutil.copy(FOLDER / name, folder)
    path = {"PATH": "/usr/bin:/bin"}
    return subprocess.run([folder / "make-env"], env=path | variables, capture_output=True, text=True, check=False)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """What is in .env after make-env."""
    assert make_env(tmp_path).returncode == 0
    return {name: value or "" for name, value in dotenv_values(tmp_path / ".env").items()}


def url_of(service: str, port: int, path: str = "") -> str:
    return f"http://{service}:{port}{path}"


# What belongs to Faregate


@pytest.mark.parametrize("service", FAREGATE)
def test_a_faregate_service_sets_only_what_faregate_knows(service: str):
    assert services()[service].get("environment", {}).keys() <= known.FAREGATE


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, dict[str, str]], Settings]:
    """What Faregate reads in a service, with these variables in .env."""

    def read(service: str, variables: dict[str, str]) -> Settings:
        monkeypatch.chdir(tmp_path / "..")
        for name in known.FAREGATE:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment(service, variables).items():
            monkeypatch.setenv(name, value)
        return Settings()

    return read


@pytest.mark.parametrize("service", [*GATEWAYS, "migrate-faregate"])
def test_faregate_accepts_the_settings_that_make_env_leads_to(
    service: str, env: dict[str, str], settings_of: Callable[[str, dict[str, str]], Settings]
):
    settings = settings_of(service, env)
    assert [connection.name for connection in settings.connections()] == ["openwebui"]
    assert settings.identity is IdentityMode.JWT
    assert settings.openrouter_base_url == url_of("simulator", SIMULATOR_PORT, "/api/v1")


def test_one_key_of_openrouter_is_the_only_one_and_several_are_in_its_place(
    env: dict[str, str], settings_of: Callable[[str, dict[str, str]], Settings]
):
    def keys(variables: dict[str, str]) -> dict[str, str]:
        return {key.name: key.key.get_secret_value() for key in settings_of("gateway-1", variables).upstream_keys()}

    assert keys(env) == {"default": env["OPENROUTER_API_KEY"]}
    several = {"OPENROUTER_API_KEYS": "main=sk-or-v1-one@3,spare=sk-or-v1-two"}
    assert keys(env | several) == {"main": "sk-or-v1-one", "spare": "sk-or-v1-two"}


def test_both_gateways_have_the_same_settings_and_a_folder_of_their_own():
    one, other = (services()[name] for name in GATEWAYS)
    folder = dockerfile.TEXT.split("VOLUME ")[1].split()[0]
    assert one["volumes"] == [f"gateway-1:{folder}"]
    assert other["volumes"] == [f"gateway-2:{folder}"]
    assert {**one, "volumes": None} == {**other, "volumes": None}


def test_only_the_job_migrates():
    for name in GATEWAYS:
        assert services()[name]["environment"]["DATABASE_MIGRATE"] == "manual"
        assert services()[name]["depends_on"]["migrate-faregate"]["condition"] == "service_completed_successfully"
    assert services()["migrate-faregate"]["command"] == ["migrate"]
    assert services()["openwebui"]["environment"]["ENABLE_DB_MIGRATIONS"] == "false"
    assert services()["migrate-openwebui"]["environment"]["ENABLE_DB_MIGRATIONS"] == "true"


def test_answers_may_end_before_a_container_is_killed():
    grace = Settings.model_fields["shutdown_grace"].default
    for name in (*GATEWAYS, "balancer"):
        assert compose_file.seconds(services()[name]["stop_grace_period"]) > grace


@pytest.mark.parametrize("service", FAREGATE)
def test_faregate_runs_with_nothing_it_does_not_need(service: str):
    said = services()[service]
    assert said["read_only"] is True
    assert said["cap_drop"] == ["ALL"]
    assert said["security_opt"] == ["no-new-privileges:true"]


# What belongs to Open WebUI


def test_open_webui_is_set_only_what_it_knows():
    for name in OPEN_WEBUI:
        assert services()[name]["environment"].keys() <= known.OPEN_WEBUI


def test_nothing_of_open_webui_goes_past_the_gateway(env: dict[str, str]):
    said = environment("openwebui", env)
    urls = {name: value for name, value in said.items() if re.search(r"OPENAI_API_BASE_URLS?$", name)}
    keys = {name: value for name, value in said.items() if re.search(r"OPENAI_API_KEYS?$", name)}
    kinds = {"OPENAI", "RAG_OPENAI", "AUDIO_STT_OPENAI", "AUDIO_TTS_OPENAI", "IMAGES_OPENAI", "IMAGES_EDIT_OPENAI"}
    assert {re.sub(r"_API_BASE_URLS?$", "", name) for name in urls} == kinds
    assert {re.sub(r"_API_KEYS?$", "", name) for name in keys} == kinds
    assert set(urls.values()) == {url_of("balancer", int(listens()), "/v1")}
    assert set(keys.values()) == {env["OPENWEBUI_CONNECTION_KEY"]}
    assert said["ENABLE_OLLAMA_API"] == said["ENABLE_DIRECT_CONNECTIONS"] == "false"


def test_both_sides_have_the_same_secrets(env: dict[str, str]):
    open_webui, gateway = environment("openwebui", env), environment("gateway-1", env)
    assert open_webui["FORWARD_USER_INFO_HEADER_JWT_SECRET"] == gateway["OPENWEBUI_JWT_SECRETS"]
    assert gateway["GATEWAY_API_KEYS"] == f"openwebui:{open_webui['OPENAI_API_KEYS']}"
    storage = environment("storage", env)
    assert storage["MINIO_ROOT_USER"] == open_webui["S3_ACCESS_KEY_ID"]
    assert storage["MINIO_ROOT_PASSWORD"] == open_webui["S3_SECRET_ACCESS_KEY"]


def test_task_and_groups_are_forwarded_as_the_documentation_says():
    said = services()["openwebui"]["environment"]["OPENAI_API_CONFIGS"]
    assert f"OPENAI_API_CONFIGS='{said}'" in (DOCS / "identity.md").read_text(encoding="utf-8")


def test_open_webui_keeps_what_many_nodes_share_outside_of_itself(env: dict[str, str]):
    said = environment("openwebui", env)
    assert said["STORAGE_PROVIDER"] == "s3"
    assert said["VECTOR_DB"] == "pgvector"
    assert said["WEBSOCKET_MANAGER"] == "redis"
    assert said["DATABASE_URL"] == said["PGVECTOR_DB_URL"]
    # One server, and what is counted on is in another database of it.
    assert urlsplit(said["REDIS_URL"]).path != urlsplit(environment("gateway-1", env)["REDIS_URL"]).path


# Ports, probes, order


def listens() -> str:
    (port,) = re.findall(r"^\s*listen (\d+);", compose_file.balancer(), re.MULTILINE)
    return port


def test_ports_agree_with_the_program():
    port = Settings.model_fields["port"].default
    assert dockerfile.port() == port
    assert not any("PORT" in services()[name]["environment"] for name in GATEWAYS)
    servers = re.findall(r"^\s*server ([\w-]+):(\d+) ", compose_file.balancer(), re.MULTILINE)
    assert servers == [(name, str(port)) for name in GATEWAYS]
    assert services()["balancer"]["ports"][0].endswith(f":{listens()}")
    assert urlsplit(compose_file.example_values()["OPENROUTER_BASE_URL"] or "").port == SIMULATOR_PORT


def test_only_open_webui_and_the_gateway_can_be_reached_and_only_from_this_machine():
    published = {name: said["ports"] for name, said in services().items() if "ports" in said}
    assert {name: len(ports) for name, ports in published.items()} == {"openwebui": 1, "balancer": 1}
    for (port,) in published.values():
        assert compose_file.fill(port, {}).startswith("127.0.0.1:")
    assert all(said.get("network_mode") is None for said in services().values())


def test_what_holds_data_reaches_nothing_outside():
    assert compose_file.load()["networks"]["data"] == {"internal": True}
    for name in ("redis", "postgres", "storage"):
        assert services()[name]["networks"] == ["data"]


def test_the_balancer_is_asked_through_to_a_probe_of_the_program():
    url = services()["balancer"]["healthcheck"]["test"][-1]
    assert urlsplit(url).port == int(listens())
    assert urlsplit(url).path in Health.paths


async def test_the_simulator_answers_its_probe():
    (port, path) = re.findall(
        r"HTTPConnection\('127\.0\.0\.1', (\d+),.*'GET', '(\S+)'", services()["simulator"]["healthcheck"]["test"][-1]
    )[0]
    assert int(port) == SIMULATOR_PORT
    transport = httpx.ASGITransport(create_app(Options()))
    async with httpx.AsyncClient(transport=transport, base_url="http://simulator") as client:
        assert (await client.get(path)).status_code == 200


def test_everything_is_started_after_what_it_needs_is_healthy_or_done():
    image_has_one = {name for name, said in services().items() if said["image"].startswith("faregate:")}
    for name, said in services().items():
        assert isinstance(said.get("depends_on", {}), dict), name
        for needed, how in said.get("depends_on", {}).items():
            other = services()[needed]
            if how["condition"] == "service_healthy":
                assert needed in image_has_one or "test" in other["healthcheck"]
                assert other["restart"] == "unless-stopped"
            else:
                assert how["condition"] == "service_completed_successfully"
                assert other["restart"].startswith("on-failure")
            # What is only there with a profile cannot be insisted on.
            assert how.get("required", True) is ("profiles" not in other)


@pytest.mark.parametrize(
    ("service", "needs"),
    [
        ("openwebui", {"migrate-openwebui", "bucket", "redis", "balancer"}),
        ("balancer", set(GATEWAYS)),
        ("gateway-1", {"migrate-faregate", "redis", "simulator"}),
        ("migrate-faregate", {"postgres"}),
        ("migrate-openwebui", {"postgres"}),
        ("bucket", {"storage"}),
    ],
)
def test_a_service_waits_for(service: str, needs: set[str]):
    assert set(services()[service]["depends_on"]) == needs


# Images and volumes


def test_one_image_serves_all_of_faregate_and_no_registry_is_asked_for_it():
    ours = {name: said for name, said in services().items() if said["image"] == IMAGE}
    assert ours.keys() == set(FAREGATE)
    # Two that build make two images, of which one keeps the name: the next `up` makes all containers anew.
    assert [name for name, said in services().items() if "build" in said] == ["migrate-faregate"]
    assert {said["pull_policy"] for said in ours.values()} == {"never"}


def test_images_have_a_version():
    for said in services().values():
        if said["image"] == IMAGE:
            continue
        registry, _, rest = said["image"].partition("/")
        name, _, tag = rest.partition(":")
        assert "." in registry, "a name without a registry is another image on another machine"
        assert name
        assert re.search(r"\d+\.\d+|RELEASE\.\d{4}", tag), said["image"]


def test_what_is_mounted_is_there_and_what_is_kept_has_a_name():
    named = compose_file.load()["volumes"]
    used = set()
    for said in services().values():
        for source in (volume.split(":")[0] for volume in said.get("volumes", [])):
            if source.startswith("."):
                assert (FOLDER / source).is_file()
            else:
                used.add(source)
    assert used == set(named)


def test_redis_keeps_everything_and_writes_it_down():
    lines = (FOLDER / "redis.conf").read_text(encoding="utf-8").splitlines()
    assert {"appendonly yes", "maxmemory-policy noeviction"} <= set(lines)
    assert "requirepass $$REDIS_PASSWORD" in services()["redis"]["command"][-1]
    assert not any(line.startswith("requirepass") for line in lines)


def test_each_program_has_a_database_and_a_role_of_its_own(env: dict[str, str]):
    script = (FOLDER / "databases.sql").read_text(encoding="utf-8")
    for service in ("gateway-1", "openwebui"):
        url = urlsplit(environment(service, env)["DATABASE_URL"])
        role = url.username
        variable = re.findall(rf"CREATE ROLE {role} LOGIN PASSWORD :'(\w+)';", script)[0]
        source = re.findall(rf"\\getenv {variable} (\w+)", script)[0]
        assert environment("postgres", env)[source] == url.password
        assert f"CREATE DATABASE {url.path[1:]} OWNER {role};" in script
        assert f"REVOKE ALL ON DATABASE {url.path[1:]} FROM PUBLIC;" in script


# The balancer


def test_the_balancer_keeps_no_stream_back_and_sends_no_request_twice():
    said = {line.strip().rstrip(";") for line in compose_file.balancer().splitlines()}
    assert {"proxy_buffering off", "proxy_request_buffering off", "proxy_http_version 1.1"} <= said
    assert "proxy_next_upstream error timeout" in said
    assert "access_log off" in said


def test_the_gateway_gives_up_before_the_balancer_does():
    (patience,) = re.findall(r"proxy_read_timeout (\d+)s;", compose_file.balancer())
    assert int(patience) > Settings.model_fields["upstream_idle_timeout"].default


# Secrets and .env


def test_nothing_secret_has_a_value_in_the_file():
    for name, said in services().items():
        for variable, value in said.get("environment", {}).items():
            rest = re.sub(r"\$\{\w+:\?[^}]*\}", "", value)
            if SECRET.search(variable) and not variable.startswith("POSTGRES_INITDB"):
                # What stays are names: of a connection, and of a key.
                assert rest in ("", "openwebui:", "${OPENROUTER_API_KEYS:-default=}"), f"{name}: {variable}"
            if "://" in value:
                assert urlsplit(rest.replace("${", "").replace("}", "")).password in (None, ""), f"{name}: {variable}"


def test_nothing_secret_has_a_value_in_the_example_and_all_of_them_are_asked_for():
    values = compose_file.example_values()
    secret = {name for name in values if SECRET.search(name)}
    assert {name for name in secret if values[name]} == set()
    assert secret == {variable.name for variable in compose_file.variables() if variable.required}
    assert all(
        "run make env" in text for text in re.findall(r"\$\{\w+:\?([^}]*)\}", (FOLDER / "compose.yaml").read_text())
    )


def test_every_variable_is_in_the_example_with_the_default_that_it_has():
    shown = compose_file.example_values() | compose_file.example_defaults()
    # COMPOSE_PROFILES is for Docker Compose itself.
    assert set(shown) - {"COMPOSE_PROFILES"} == {variable.name for variable in compose_file.variables()}
    defaults = {
        variable.name: variable.default for variable in compose_file.variables() if variable.default is not None
    }
    # Several keys are in place of the one, and no default.
    shown = compose_file.example_defaults() | {"OPENROUTER_BASE_URL": OPENROUTER_URL}
    assert shown == defaults | {"OPENROUTER_API_KEYS": ""}


def test_every_variable_is_explained_in_the_documentation():
    page = (DOCS / "deployment.md").read_text(encoding="utf-8")
    section = page.split("\n## Compose\n")[1].split("\n## ")[0]
    shown = compose_file.example_values() | compose_file.example_defaults()
    assert {name for name in shown if f"`{name}`" not in section} == set()


def test_make_env_fills_in_all_that_is_empty_with_secrets_of_its_own(tmp_path: Path):
    made = []
    for folder in (tmp_path / "one", tmp_path / "other"):
        folder.mkdir()
        ended = make_env(folder)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert stat.S_IMODE((folder / ".env").stat().st_mode) == 0o600
        assert {path.name for path in folder.iterdir()} == {".env", ".env.example", "make-env"}
        made.append(dotenv_values(folder / ".env"))
    asked = {name for name, value in compose_file.example_values().items() if not value}
    secrets = [values[name] or "" for values in made for name in asked]
    assert len(set(secrets)) == 2 * len(asked)
    assert all(re.fullmatch(r"[A-Za-z0-9-]{20,}", secret) for secret in secrets)
    for values in made:
        assert {name: values[name] for name in values if name not in asked} == {
            name: value for name, value in compose_file.example_values().items() if value
        }


def test_make_env_prints_no_secret_and_overwrites_nothing(tmp_path: Path):
    first = make_env(tmp_path)
    text = (tmp_path / ".env").read_text()
    again = make_env(tmp_path, OPENROUTER_API_KEY="sk-or-another")
    assert (tmp_path / ".env").read_text() == text
    assert (again.returncode, again.stdout) == (0, "deploy/compose/.env is there already, and stays as it is.\n")
    for value in dotenv_values(tmp_path / ".env").values():
        assert not (value and len(value) > 19 and value in first.stdout + again.stdout)


def test_with_a_key_of_openrouter_the_simulator_stays_away(tmp_path: Path):
    make_env(tmp_path, OPENROUTER_API_KEY="sk-or-mine")
    values = {name: value or "" for name, value in dotenv_values(tmp_path / ".env").items()}
    assert "COMPOSE_PROFILES" not in values
    said = environment("gateway-1", values)
    assert (said["OPENROUTER_API_KEYS"], said["OPENROUTER_BASE_URL"]) == ("default=sk-or-mine", OPENROUTER_URL)


def test_a_key_that_would_not_survive_the_file_is_refused(tmp_path: Path):
    ended = make_env(tmp_path, OPENROUTER_API_KEY="sk-or-$HOME")
    assert ended.returncode == 1
    assert ended.stderr == "OPENROUTER_API_KEY should be letters, digits and ._- alone, as OpenRouter makes it.\n"
    assert not (tmp_path / ".env").exists()


def test_make_env_does_not_follow_a_link_that_leads_nowhere(tmp_path: Path):
    make_env(tmp_path)
    (tmp_path / ".env").unlink()
    (tmp_path / ".env").symlink_to(tmp_path / "nowhere")
    assert make_env(tmp_path).returncode == 0
    assert not (tmp_path / "nowhere").exists()
