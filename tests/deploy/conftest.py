"""The rendered overlays, for every test that reads them."""

import pytest
from manifests import OVERLAYS, Manifests


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> Manifests:
    """Each overlay in turn."""
    return Manifests(request.param)


@pytest.fixture
def minikube() -> Manifests:
    return Manifests("minikube")


@pytest.fixture
def production() -> Manifests:
    return Manifests("production")
