"""A machine that runs out of something: requests go on as long as they can be counted, and `/readyz` tells."""

import os
import resource
import sqlite3
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from books import AT_ONCE, DAY, until
from commands import CONNECTION_KEY, DEADLINE, Gateway, Launch
from open_webui import plain_headers, somebody, user_turn


def ask(client: httpx.Client, gateway: Gateway) -> int:
    """The status of one chat, over a connection that is there already."""
    answer = client.post(
        f"{gateway.url}/v1/chat/completions",
        headers=plain_headers(somebody(), CONNECTION_KEY),
        json=user_turn("Hello", stream=False, tools=[]),
    )
    return answer.status_code


def ready(gateway: Gateway) -> tuple[int, str, dict[str, dict[str, object]]]:
    answer = httpx.get(f"{gateway.url}/readyz", timeout=DEADLINE)
    return answer.status_code, answer.json()["status"], answer.json()["checks"]


def rows(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "faregate.db")) as database:
        count: int = database.execute("select count(*) from usage_records").fetchone()[0]
    return count


@pytest.fixture
def own(launch: Launch) -> Gateway:
    gateway = launch()
    gateway.set_policy(limits=[DAY, AT_ONCE])
    return gateway


def test_running_out_of_file_descriptors_for_a_moment_ends_nothing(own: Gateway):
    with httpx.Client(timeout=DEADLINE) as client:
        assert ask(client, own) == 200
        own.usage()
        assert ask(client, own) == 200
        pid = own.process.pid
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")), hard))
        try:
            for _ in range(3):
                ask(client, own)
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert ask(client, own) == 200
    until(lambda: rows(own.data_dir) == 6)
    assert ready(own)[1] == "ready"


def test_a_node_that_can_admit_nobody_is_not_ready_and_says_why(own: Gateway):
    with httpx.Client(timeout=DEADLINE) as client:
        assert ask(client, own) == 200
        own.usage()
        soft, hard = resource.prlimit(own.process.pid, resource.RLIMIT_FSIZE)
        # As on a full disk: no file may grow.
        size = (own.data_dir / "journal.jsonl").stat().st_size
        resource.prlimit(own.process.pid, resource.RLIMIT_FSIZE, (size, hard))
        assert ask(client, own) == 503
        status, state, checks = ready(own)
        assert (status, state) == (503, "unready")
        assert "journal" in str(checks["ledger"]["detail"])
        resource.prlimit(own.process.pid, resource.RLIMIT_FSIZE, (soft, hard))
        until(lambda: ready(own)[1] == "ready")
        assert ask(client, own) == 200


def test_a_locked_database_stops_nobody_and_its_backlog_can_be_seen(own: Gateway):
    lock = sqlite3.connect(own.data_dir / "faregate.db", isolation_level=None)
    try:
        lock.execute("BEGIN EXCLUSIVE")
        with httpx.Client(timeout=DEADLINE) as client:
            assert [ask(client, own) for _ in range(5)] == [200] * 5
        until(lambda: ready(own)[1] == "degraded")
        status, _, checks = ready(own)
        assert status == 200
        assert "wait" in str(checks["database"]["detail"])
    finally:
        lock.execute("ROLLBACK")
        lock.close()
    until(lambda: ready(own)[1] == "ready")
    assert len(own.usage()) == 5
