"""The Kubernetes manifests: each overlay rendered, and then read as the cluster would read it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from manifests import (
    K8S,
    OVERLAYS,
    ROOT,
    Manifests,
    containers,
    image_of,
    name_of,
    pod,
    ports,
    probes,
    section,
)

from faregate import __version__
from faregate.health import Health
from faregate.settings import Settings
from faregate.telemetry.metrics import Metrics

PROBE_PATHS = {
    "faregate": Health.paths,
    # Its main.py: alive, and ready with database and Redis; those of MinIO's documentation.
    "open-webui": {"/health", "/ready"},
    "minio": {"/minio/health/live", "/minio/health/ready"},
}
RESOURCE_METRICS = {"cpu", "memory"}
"""What metrics-server serves as metrics.k8s.io."""

EVERYTHING = frozenset({"*"})
EXPLAINED: dict[str, tuple[frozenset[str], str]] = {
    "CKV_K8S_11": (EVERYTHING, "a CPU limit pauses streams for tenths of a second; requests share the CPU fairly"),
    "CKV_K8S_15": (EVERYTHING, "tags are versions, and an image that was built in minikube cannot be pulled"),
    "CKV_K8S_21": (EVERYTHING, "minikube: the first run is two commands in `default`; production has its namespace"),
    "CKV_K8S_35": (EVERYTHING, "neither program reads secrets from files"),
    "CKV_K8S_38": (frozenset({"secrets"}), "its job is to ask the API server, for one Secret"),
    "CKV_K8S_40": (frozenset({"postgres", "redis"}), "the users that their images have"),
    "CKV_K8S_43": (EVERYTHING, "digests come with your registry; each image has a comment where"),
}
"""What the policy linter finds and we mean: where, and why."""

IMAGES = {"faregate", "open-webui", "pgvector", "redis", "silo"}


def test_every_manifest_is_valid_against_the_schemas_of_kubernetes(manifests: Manifests):
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate brings the schemas")
    for resource in manifests.all:
        # Strict: a field that does not exist, such as a misspelt one, is an error.
        validator.validate(resource, validator.latest_version(), strict=True)


def test_everything_is_in_one_namespace_and_says_what_it_belongs_to(manifests: Manifests):
    namespaces = {one["metadata"].get("namespace") for one in manifests.all if one["kind"] != "Namespace"}
    assert len(namespaces) == 1
    assert None not in namespaces
    for resource in manifests.all:
        assert resource["metadata"]["labels"]["app.kubernetes.io/part-of"] == "faregate", name_of(resource)
    for workload in manifests.workloads():
        labels = pod(workload)["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "faregate"
        assert labels["app.kubernetes.io/name"] == workload["metadata"]["name"]
        assert {"app.kubernetes.io/component"} <= labels.keys()


def test_a_namespace_of_its_own_admits_restricted_pods_alone(production: Manifests):
    (namespace,) = production.of("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert production.one("Deployment", "faregate")["metadata"]["namespace"] == namespace["metadata"]["name"]


def test_a_first_run_is_in_the_namespace_where_its_first_command_puts_the_secret(minikube: Manifests):
    # `kubectl create secret` has no -n, and so means `default`.
    assert {one["metadata"]["namespace"] for one in minikube.all} == {"default"}


def test_every_pod_runs_restricted_and_without_what_it_does_not_need(manifests: Manifests):
    for workload in manifests.workloads():
        spec = pod(workload)["spec"]
        where = name_of(workload)
        assert spec["securityContext"]["runAsNonRoot"] is True, where
        assert spec["securityContext"]["runAsUser"] > 0, where
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert spec["enableServiceLinks"] is False, where
        for container in containers(workload):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, where
            assert context["readOnlyRootFilesystem"] is True, where
            assert context["capabilities"] == {"drop": ["ALL"]}, where
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), where
            assert "memory" in container["resources"]["limits"], where


def test_no_pod_has_a_token_but_the_job_that_makes_secrets(minikube: Manifests):
    with_token = {
        name_of(one)
        for one in minikube.workloads()
        if pod(one)["spec"].get("automountServiceAccountToken") is not False
    }
    assert with_token == {"Job/secrets"}
    accounts = {one["metadata"]["name"]: one for one in minikube.of("ServiceAccount")}
    for workload in minikube.workloads():
        assert accounts[pod(workload)["spec"]["serviceAccountName"]]["automountServiceAccountToken"] is False


def test_the_account_of_that_job_may_read_and_patch_one_secret_and_nothing_else(minikube: Manifests):
    (role,) = minikube.of("Role")
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["ai-secrets"], "verbs": ["get", "patch"]}
    ]
    (binding,) = minikube.of("RoleBinding")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "secrets", "namespace": "default"}]
    assert minikube.of("ClusterRole", "ClusterRoleBinding") == []


def test_production_has_no_account_with_rights_and_none_of_the_bundled_services(production: Manifests):
    assert production.of("Role", "RoleBinding", "StatefulSet") == []
    assert {name_of(one) for one in production.workloads()} == {
        "Deployment/faregate",
        "Deployment/open-webui",
        "Job/open-webui-migration",
    }
    bundled = [one for one in production.all if "data" not in one and "postgres:5432" in json.dumps(one)]
    assert bundled == []
    assert not re.search(r"//(minio|redis|postgres)[:/]", production.text)


def test_each_service_selects_one_workload_and_sends_to_a_port_of_it(manifests: Manifests):
    for service in manifests.of("Service"):
        (workload,) = manifests.hits({"matchLabels": service["spec"]["selector"]})
        open_ports = ports(containers(workload)[-1])
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in open_ports, name_of(service)


def test_probes_ask_a_port_and_a_path_that_there_are(manifests: Manifests):
    for workload in manifests.workloads():
        if workload["kind"] == "Job":
            continue
        container = containers(workload)[-1]
        assert probes(container).keys() == {"startupProbe", "livenessProbe", "readinessProbe"}, name_of(workload)
        for probe in probes(container).values():
            if "httpGet" in probe:
                assert probe["httpGet"]["port"] in ports(container)
                assert probe["httpGet"]["path"] in PROBE_PATHS[workload["metadata"]["name"]]


def test_a_gateway_that_cannot_serve_gets_no_requests_and_is_not_killed_for_it(manifests: Manifests):
    of = probes(manifests.serving("faregate"))
    assert of["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert of["livenessProbe"]["httpGet"]["path"] == "/healthz"


def test_the_gateway_listens_where_its_manifest_says(manifests: Manifests):
    deployment = manifests.one("Deployment", "faregate")
    container = containers(deployment)[-1]
    settings = Settings.model_fields
    environment = manifests.environment(container)
    assert ports(container) == {"http": int(environment.get("PORT", settings["port"].default))}
    annotations = pod(deployment)["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] == Metrics.path
    assert int(annotations["prometheus.io/port"]) == ports(container)["http"]


def test_what_uses_a_service_names_it_and_its_port(manifests: Manifests):
    found = set()
    services = {one["metadata"]["name"]: one for one in manifests.of("Service")}
    for workload in manifests.workloads():
        for container in containers(workload):
            for value in manifests.environment(container).values():
                for host, port in re.findall(r"http://([\w-]+):(\d+)", value) if isinstance(value, str) else []:
                    assert int(port) in {one["port"] for one in services[host]["spec"]["ports"]}, value
                    found.add(host)
    assert "faregate" in found


def test_one_job_prepares_the_database_of_open_webui_and_its_replicas_wait_for_it(manifests: Manifests):
    deployment = manifests.one("Deployment", "open-webui")
    assert deployment["spec"]["replicas"] >= 2
    waiting, serving = containers(deployment)
    (migrating,) = containers(manifests.one("Job", "open-webui-migration"))
    assert waiting["image"] == serving["image"] == migrating["image"]
    assert (waiting["command"][-1], migrating["command"][-1]) == ("wait", "migrate")
    # It writes the first settings into the database, so it has to have the same.
    assert manifests.environment(migrating) == manifests.environment(serving)
    assert manifests.environment(serving)["ENABLE_DB_MIGRATIONS"] == "false"


def test_the_autoscaler_scales_the_gateway_on_what_is_served(manifests: Manifests):
    (autoscaler,) = manifests.of("HorizontalPodAutoscaler")
    spec = autoscaler["spec"]
    deployment = manifests.one(spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"])
    assert spec["maxReplicas"] > spec["minReplicas"] >= 2
    # With it in the manifest, each apply would undo what the autoscaler did.
    assert "replicas" not in deployment["spec"]
    for metric in spec["metrics"]:
        assert metric["type"] == "Resource"
        assert metric["resource"]["name"] in RESOURCE_METRICS
        # Utilization is a share of the request: without one in every container, it stops.
        name = metric["resource"]["name"]
        assert all(name in one["resources"]["requests"] for one in pod(deployment)["spec"]["containers"])


def test_the_metric_that_a_comment_recommends_is_one_that_the_gateway_has():
    comment = (K8S / "base/faregate-scaling.yaml").read_text()
    (name,) = re.findall(r"metric: \{name: (\w+)\}", comment)
    assert f'"{name}"' in (ROOT / "src/faregate/telemetry/metrics.py").read_text()


def test_a_rolling_update_and_a_drain_leave_gateways_to_ask(manifests: Manifests):
    for name in ("faregate", "open-webui"):
        deployment = manifests.one("Deployment", name)
        assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
        budget = manifests.one("PodDisruptionBudget", name)
        assert manifests.hits(budget["spec"]["selector"]) == [deployment]
        assert budget["spec"]["maxUnavailable"] == 1
        for constraint in pod(deployment)["spec"]["topologySpreadConstraints"]:
            assert manifests.hits(constraint["labelSelector"]) == [deployment]


def test_answers_have_the_time_to_end_before_a_pod_is_killed(manifests: Manifests):
    deployment = manifests.one("Deployment", "faregate")
    container = containers(deployment)[-1]
    environment = manifests.environment(container)
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = float(environment.get("SHUTDOWN_GRACE", Settings.model_fields["shutdown_grace"].default))
    # What is left is settled and written in what remains.
    assert before + grace + 10 <= pod(deployment)["spec"]["terminationGracePeriodSeconds"]


def test_every_network_policy_is_about_pods_that_there_are(manifests: Manifests):
    for policy in manifests.of("NetworkPolicy"):
        spec = policy["spec"]
        selected = manifests.hits(spec["podSelector"])
        assert selected, name_of(policy)
        for rule in spec.get("ingress", []):
            for peer in rule.get("from", []):
                assert "podSelector" not in peer or manifests.hits(peer["podSelector"]), name_of(policy)
            for port in rule["ports"]:
                assert all(port["port"] in ports(containers(one)[-1]).values() for one in selected), name_of(policy)
        for rule in spec.get("egress", []):
            for peer in rule.get("to", []):
                if "podSelector" in peer:
                    (target,) = manifests.hits(peer["podSelector"])
                    for port in rule["ports"]:
                        assert port["port"] in ports(containers(target)[-1]).values(), name_of(policy)


def test_what_is_not_named_may_talk_to_nobody(manifests: Manifests):
    deny = manifests.one("NetworkPolicy", "default-deny")["spec"]
    assert manifests.hits(deny["podSelector"]) == manifests.workloads()
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert {"ingress", "egress"} & deny.keys() == set()


def test_a_flow_between_two_pods_is_let_out_and_let_in(manifests: Manifests):
    out, into = set(), set()
    for policy in manifests.of("NetworkPolicy"):
        here = [one["metadata"]["name"] for one in manifests.hits(policy["spec"]["podSelector"])]
        for rule in policy["spec"].get("egress", []):
            for peer in rule.get("to", []):
                for there in manifests.hits(peer["podSelector"]) if "podSelector" in peer else []:
                    out |= {(one, there["metadata"]["name"], port["port"]) for one in here for port in rule["ports"]}
        for rule in policy["spec"].get("ingress", []):
            for peer in rule.get("from", []):
                for there in manifests.hits(peer["podSelector"]) if "podSelector" in peer else []:
                    into |= {(there["metadata"]["name"], one, port["port"]) for one in here for port in rule["ports"]}
    assert out == into
    assert ("open-webui", "faregate", 8080) in out
    # The gateway's admin API is on the same port: files and databases have no business there.
    assert {source for source, target, _ in out if target == "faregate"} == {"open-webui"}


def test_every_volume_that_is_mounted_is_there(manifests: Manifests):
    maps = {one["metadata"]["name"] for one in manifests.of("ConfigMap")}
    for workload in manifests.workloads():
        spec = pod(workload)["spec"]
        volumes = {one["name"]: one for one in spec.get("volumes", [])}
        claims = {one["metadata"]["name"] for one in workload["spec"].get("volumeClaimTemplates", [])}
        for container in containers(workload):
            mounted = {one["name"] for one in container.get("volumeMounts", [])}
            assert mounted <= volumes.keys() | claims, name_of(workload)
        assert {one["configMap"]["name"] for one in volumes.values() if "configMap" in one} <= maps


def test_images_are_pinned_and_say_where_a_digest_goes(manifests: Manifests):
    for workload in manifests.workloads():
        for container in containers(workload):
            tag = container["image"].rpartition(":")[2]
            assert image_of(container) in IMAGES
            if image_of(container) == "faregate":
                assert tag == __version__
            else:
                # Silo's versions are the moments of their release.
                assert re.fullmatch(r"v?\d+\.\d+\.\d+(-\w+)?|RELEASE\.[\dTZ-]+", tag), container["image"]


def test_each_image_has_a_comment_for_its_digest():
    for path in (K8S / "base").glob("*.yaml"):
        text = path.read_text()
        for image in set(re.findall(r"image: (?:&\w+ )?([^*\s]\S+)$", text, re.MULTILINE)):
            assert f"{image}@sha256:..." in text, f"{path.name}: {image}"


@pytest.mark.parametrize("name", ["make_bucket.py", "databases.sql"])
def test_the_bucket_and_the_databases_are_made_in_the_same_way_in_compose(name: str):
    # Kustomize reads no file above its own folder.
    assert (K8S / "base/scripts" / name).read_text() == (ROOT / "deploy/compose" / name).read_text()


def test_the_commands_in_the_overlays_are_those_of_the_documentation():
    text = section((ROOT / "docs/deployment.md").read_text(), "Kubernetes")
    for overlay in OVERLAYS:
        head = (K8S / "overlays" / overlay / "kustomization.yaml").read_text().partition("apiVersion")[0]
        commands = re.findall(r"^#   ((?:kubectl|minikube) .*)$", head, re.MULTILINE)
        assert len(commands) == 3
        for command in commands:
            assert command in text


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_policy_linter_finds_nothing_that_is_not_explained(overlay: str, tmp_path: Path):
    checkov = shutil.which("checkov", path=str(ROOT / "build/checkov/bin")) or shutil.which("checkov")
    if checkov is None:
        pytest.skip("there is no checkov here; python -m venv build/checkov and install it there, or anywhere on PATH")
    (tmp_path / "manifests.yaml").write_text(Manifests(overlay).text)
    command = [checkov, "--skip-download", "--framework", "kubernetes", "--directory", tmp_path, "--output", "json"]
    ended = subprocess.run([*command, "--quiet", "--compact"], capture_output=True, text=True, check=False)
    report = json.loads(ended.stdout)
    assert report["summary"]["parsing_errors"] == 0
    assert report["summary"]["passed"] > 200
    # Offline it rates nothing, so everything counts as high.
    found = {(one["check_id"], one["resource"].rpartition(".")[2]) for one in report["results"]["failed_checks"]}
    unexplained = []
    for check, name in found:
        names, _ = EXPLAINED.get(check, (frozenset(), ""))
        if name not in names and names != EVERYTHING:
            unexplained.append((check, name))
    assert unexplained == []
