"""The admin API while the database is away, or cannot be written: it says so, and when to come back."""

import contextlib
import socket
import sqlite3

import pytest

from faregate.admin.app import create_admin
from faregate.policy.model import GroupPolicy, Policy
from faregate.store import engine
from faregate.store.engine import open_engine
from faregate.store.store import Store

CALM = {"id": "calm", "name": "Calm"}
STAFF = {"group_name": "staff", "policy_id": "default"}
BODIES = {
    ("POST", "/admin/policies"): CALM,
    ("POST", "/admin/group-policies"): STAFF,
    ("PATCH", "/admin/users/{user_id}"): {"is_active": False},
}


@pytest.fixture
def unreachable():
    """The URL of a PostgreSQL that is not there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"postgresql://somebody:secret@127.0.0.1:{taken.getsockname()[1]}/faregate"


def requests(services, user):
    """One sensible request for each method of each route that the application has."""
    for path, item in create_admin(services).openapi()["paths"].items():
        for method in map(str.upper, item):
            filled = path.format(user_id=user.id, policy_id="calm", group_name="staff")
            yield method, filled, BODIES.get((method, path))


@contextlib.contextmanager
def taken(path):
    """The file of a database, while another program is writing to it."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.close()


def known(gateway):
    """Somebody with a policy, in a group with another one: something to change for each request."""
    gateway.directory.put_policy(Policy("calm", "Calm"))
    gateway.directory.put_policy(Policy("wild", "Wild"))
    gateway.directory.put_group_policy(GroupPolicy("staff", "wild"))
    return gateway.meet()


def rules(gateway):
    rulebook = gateway.directory.rulebook
    return dict(rulebook.policies), rulebook.group_policies


async def test_while_the_database_is_away_every_endpoint_says_so_and_when_to_come_back(
    gateway, as_admin, refusal, unreachable
):
    user, store = known(gateway), Store(open_engine(unreachable))
    before = rules(gateway)
    services = gateway.services(store=store)
    asked = list(requests(services, user))
    assert {"GET", "POST", "PATCH", "DELETE"} <= {method for method, _, _ in asked}
    async with as_admin(services) as admin:
        for method, path, body in asked:
            response = await admin.request(method, path, json=body)
            error = refusal(response, 503)
            assert response.headers["retry-after"] == "5", (method, path)
            assert (error["code"], error["type"]) == ("store_unavailable", "server_error")
            assert error["message"] == (
                "The database cannot be reached at the moment, nothing was changed. Try again in 5 seconds."
            )
        assert (await admin.get("/admin/openapi.json")).status_code == 200
    await store.close()
    assert (rules(gateway), user.is_active) == (before, True)


@pytest.fixture
def impatient(monkeypatch):
    """Who wants to write does not wait long for others. To be asked for before whatever opens the database."""
    monkeypatch.setattr(engine, "POOL_TIMEOUT", 0.05)


async def test_while_the_database_cannot_be_written_changes_are_refused_and_everything_is_shown(
    impatient, gateway, as_admin, refusal, tmp_path
):
    user = known(gateway)
    await gateway.flush()
    before = rules(gateway)
    store = await Store.open(f"sqlite:///{tmp_path / 'faregate.db'}")
    services = gateway.services(store=store)
    with taken(tmp_path / "faregate.db"):
        async with as_admin(services) as admin:
            for method, path, body in requests(services, user):
                response = await admin.request(method, path, json=body)
                if method == "GET":
                    assert response.status_code == 200, path
                else:
                    assert refusal(response, 503)["code"] == "store_unavailable"
                    assert response.headers["retry-after"] == "5"
    await store.close()
    assert (rules(gateway), user.is_active) == (before, True)
