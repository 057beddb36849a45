"""Nobody without the key learns anything; nothing that is wrong gets in."""

import json

import pytest

from faregate.admin.app import create_admin
from faregate.admin.body import MAX_BYTES
from faregate.store.errors import StoreUnavailable

KEY = "adminkey-ünïcode".encode()
ROUTES = [
    ("GET", "/admin/users"),
    ("PATCH", "/admin/users/u"),
    ("GET", "/admin/users/u/quota"),
    ("GET", "/admin/policies"),
    ("POST", "/admin/policies"),
    ("DELETE", "/admin/policies/p"),
    ("GET", "/admin/group-policies"),
    ("POST", "/admin/group-policies"),
    ("DELETE", "/admin/group-policies/g"),
    ("GET", "/admin/audit"),
    ("GET", "/admin/usage"),
    ("GET", "/admin/openapi.json"),
    ("GET", "/admin/nothing"),
    ("GET", "/docs"),
]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"x-admin-key", b"")],
        [(b"x-admin-key", b"wrong")],
        [(b"x-admin-key", KEY + b"x")],
        [(b"x-admin-key", KEY[:-1])],
        [(b"x-admin-key", "adminkey-ünïcode".encode("latin-1"))],
        [(b"x-admin-key", KEY), (b"x-admin-key", KEY)],
        [(b"x-admin-key", b"wrong"), (b"X-Admin-Key", KEY)],
        [(b"authorization", b"Bearer " + KEY)],
    ],
    ids=["missing", "empty", "wrong", "longer", "shorter", "other encoding", "twice", "also wrong", "elsewhere"],
)
async def test_without_the_key_every_path_is_401(stranger, refusal, headers):
    for method, path in ROUTES:
        error = refusal(await stranger.request(method, path, headers=headers), 401)
        assert (error["code"], error["type"]) == ("invalid_admin_key", "authentication_error")
        assert error["param"] == "x-admin-key"


def test_there_is_no_admin_api_without_a_key(gateway):
    with pytest.raises(ValueError, match="needs an admin key"):
        create_admin(gateway.services(admin_key=""))


def test_the_key_does_not_show_when_the_services_are_printed(gateway):
    assert KEY.decode() not in repr(gateway.services())


async def test_answers_are_not_kept_by_anybody(admin):
    assert (await admin.get("/admin/users")).headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/admin/nothing", "/admin", "/docs", "/redoc", "/openapi.json", "/admin/users/"])
async def test_a_path_that_is_not_there_is_404(admin, refusal, path):
    assert refusal(await admin.get(path), 404)["code"] == "not_found"


async def test_a_method_that_is_not_there_is_405(admin, refusal):
    response = await admin.put("/admin/users")
    assert refusal(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "GET"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b'"text"', "body"),
        (b"\xff", "body"),
        (b'{"is_active": false} {}', "body"),
        (b"[" * 100_000, "body"),
        (b'{"is_active": ' + b"9" * 5000 + b"}", "body"),
        (b'{"is_active": NaN}', "is_active"),
        (b'{"a": [1, {"b": -Infinity}]}', "a[1].b"),
        (b'{"is_active": true, "is_active": false}', "is_active"),
        (b'{"policy_id": "a\\u0000b"}', "policy_id"),
        (b'{"policy_id": "\\ud800"}', "policy_id"),
        (b'{"a\\u0000": 1}', "body"),
    ],
    ids=lambda value: value[:30].decode("latin-1") if isinstance(value, bytes) else value,
)
async def test_a_body_that_is_no_sensible_json_object_is_422(gateway, admin, refusal, body, param):
    user = gateway.meet()
    error = refusal(await admin.patch(f"/admin/users/{user.id}", content=body), 422)
    assert error["param"] == param
    assert user.is_active


async def test_a_body_is_read_whatever_its_content_type_says(gateway, admin):
    user = gateway.meet()
    response = await admin.patch(
        f"/admin/users/{user.id}",
        content=b'{"is_active": false}',
        headers={"content-type": "application/x-www-form-urlencoded"},
    )
    assert response.status_code == 200


async def test_a_body_of_a_megabyte_is_read_and_a_larger_one_is_413(admin, refusal):
    frame = len(json.dumps({"id": ""}))
    fits = json.dumps({"id": "x" * (MAX_BYTES - frame)})
    assert refusal(await admin.post("/admin/policies", content=fits), 422)["param"] == "id"
    assert refusal(await admin.post("/admin/policies", content=fits + " "), 413)["code"] == "body_too_large"


@pytest.mark.parametrize("path", ["/admin/usage", "/admin/users", "/admin/users/{}/quota"])
async def test_a_database_that_can_only_be_read_is_read(gateway, as_admin, caplog, path):
    user = gateway.meet()
    gateway.accept(user, "r1")
    await gateway.flush()

    async def full():
        raise StoreUnavailable("the database did not do its work (database or disk is full)")

    async with as_admin(gateway.services(flush=full)) as client:
        response = await client.get(path.format(user.id))
    assert response.status_code == 200
    assert path.endswith("quota") or len(response.json()) == 1
    assert "database or disk is full" in caplog.text


async def test_a_fault_of_ours_has_the_shape_of_errors_too(gateway, as_admin, refusal):
    def broken():
        raise RuntimeError("secret detail")

    gateway.meet()
    async with as_admin(gateway.services(clock=broken)) as client:
        response = await client.get(f"/admin/users/{gateway.directory.users()[0].id}/quota")
    assert "secret detail" not in refusal(response, 500)["message"]


async def test_the_openapi_document_lists_the_routes_and_its_references_lead_somewhere(admin):
    document = (await admin.get("/admin/openapi.json")).json()
    assert {(method.upper(), path) for path, item in document["paths"].items() for method in item} == {
        ("GET", "/admin/users"),
        ("PATCH", "/admin/users/{user_id}"),
        ("GET", "/admin/users/{user_id}/quota"),
        ("GET", "/admin/policies"),
        ("POST", "/admin/policies"),
        ("DELETE", "/admin/policies/{policy_id}"),
        ("GET", "/admin/group-policies"),
        ("POST", "/admin/group-policies"),
        ("DELETE", "/admin/group-policies/{group_name}"),
        ("GET", "/admin/audit"),
        ("GET", "/admin/usage"),
        ("GET", "/admin/reports"),
        ("GET", "/admin/jobs"),
    }
    for reference in references(document):
        place = document
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]
    for item in document["paths"].values():
        for operation in item.values():
            error = operation["responses"]["422"]["content"]["application/json"]["schema"]
            assert error == {"$ref": "#/components/schemas/ErrorBody"}
    limit = document["paths"]["/admin/policies"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "meter" in limit["properties"]["limits"]["items"]["properties"]


def references(document):
    if isinstance(document, dict):
        for name, value in document.items():
            if name == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(document, list):
        for value in document:
            yield from references(value)
