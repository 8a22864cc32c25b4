"""The queue of webhooks on both of its databases, and what happens when one is in trouble."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from blocks.delivery_store import WAITING_AT_MOST, DeliveryStore
from blocks.delivery_store_engines import Engine, PostgresqlEngine, SqliteEngine
from domain.errors import Conflict, PermanentError, Unreachable
from domain.webhooks.delivery import DeliveryState, Dispatch, NewDelivery
from lab.bare_services import BarePostgresql, bare_postgresql

NOW = 1000.0


def new(key: str, lane: str = "gitlab/1", **fields: object) -> NewDelivery:
    made = NewDelivery("gitlab", lane, key, "push", "{}", NOW)
    return replace(made, **fields)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BarePostgresql]:
    directory = tmp_path_factory.mktemp("postgresql")
    for parent in (directory, *directory.parents[:2]):
        parent.chmod(0o755)
    with bare_postgresql(directory) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Engine]:
    """Return how the same database is opened, also a second time."""
    if request.param == "sqlite":
        return lambda: SqliteEngine(tmp_path / "deliveries.db")
    server: BarePostgresql = request.getfixturevalue("postgres")
    with server.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS deliveries, lanes, dispatches")
    return lambda: PostgresqlEngine(server.login)


@pytest.fixture
def store(engine: Callable[[], Engine]) -> Iterator[DeliveryStore]:
    made = DeliveryStore(engine())
    yield made
    made.close()


async def claimed(store: DeliveryStore, now: float = NOW, owner: str = "one") -> list[str]:
    lanes = await store.claim(owner, "gitlab", now, lanes_at_most=10, lease_seconds=60)
    return [lane.name for lane in lanes]


async def test_a_delivery_is_stored_once_however_often_it_comes(store: DeliveryStore) -> None:
    results = await asyncio.gather(*(store.put(new("a")) for _ in range(50)))
    assert sorted(results) == [False] * 49 + [True]
    assert await store.put(new("a", lane="gitlab/2"))
    assert await store.pending() == 2


async def test_what_was_put_is_there_when_it_is_opened_again(engine: Callable[[], Engine]) -> None:
    first = DeliveryStore(engine())
    await asyncio.gather(*(first.put(new(str(number))) for number in range(100)))
    first.close()
    second = DeliveryStore(engine())
    (lane,) = await second.claim("two", "gitlab", NOW, lanes_at_most=10, lease_seconds=60)
    second.close()
    assert len(lane.deliveries) == 100
    assert [each.number for each in lane.deliveries] == sorted(e.number for e in lane.deliveries)


async def test_a_lane_is_with_one_dispatcher_until_it_gives_it_back_or_its_lease_ends(
    store: DeliveryStore,
) -> None:
    await store.put(new("a"))
    await store.put(new("b", lane="gitlab/2"))
    assert await claimed(store) == ["gitlab/1", "gitlab/2"]
    assert await claimed(store, owner="two") == []
    await store.release("gitlab/1", "two")
    assert await claimed(store, owner="two") == []
    await store.release("gitlab/1", "one")
    assert await claimed(store, owner="two") == ["gitlab/1"]
    assert await claimed(store, NOW + 61, owner="three") == ["gitlab/1", "gitlab/2"]


async def test_two_gateways_never_get_the_same_lane(postgres: BarePostgresql) -> None:
    with postgres.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS deliveries, lanes, dispatches")
    first, second = (DeliveryStore(PostgresqlEngine(postgres.login)) for _ in range(2))
    await asyncio.gather(*(first.put(new("a", lane=f"gitlab/{n}")) for n in range(100)))
    asked = [
        store.claim(str(n), "gitlab", NOW, lanes_at_most=20, lease_seconds=60)
        for n in range(6)
        for store in (first, second)
    ]
    got = [lane.name for lanes in await asyncio.gather(*asked) for lane in lanes]
    assert len(got) == len(set(got)) == 100
    first.close()
    second.close()


async def test_what_is_finished_or_not_due_is_not_handed_out(store: DeliveryStore) -> None:
    for key in ("a", "b", "c"):
        await store.put(new(key))
    (lane,) = await store.claim("one", "gitlab", NOW, lanes_at_most=1, lease_seconds=60)
    first, second, third = (delivery.number for delivery in lane.deliveries)
    await store.finish([first], DeliveryState.DONE, "", NOW)
    await store.postpone([second], NOW + 30, "later")
    await store.release("gitlab/1", "one")
    (lane,) = await store.claim("one", "gitlab", NOW, lanes_at_most=1, lease_seconds=1)
    assert [delivery.number for delivery in lane.deliveries] == [third]
    (lane,) = await store.claim("one", "gitlab", NOW + 30, lanes_at_most=1, lease_seconds=1)
    assert [(d.number, d.attempts) for d in lane.deliveries] == [(second, 1), (third, 0)]


async def test_a_failed_delivery_that_comes_again_is_taken_up(store: DeliveryStore) -> None:
    await store.put(new("a"))
    (lane,) = await store.claim("one", "gitlab", NOW, lanes_at_most=1, lease_seconds=1)
    await store.finish([lane.deliveries[0].number], DeliveryState.FAILED, "why", NOW)
    assert await store.put(new("a", received_at=NOW + 5))
    assert not await store.put(new("a", received_at=NOW + 6))
    assert await store.counts() == {"pending": 1}


async def test_only_its_own_source_is_handed_out(store: DeliveryStore) -> None:
    await store.put(new("a", lane="alertmanager/1", source="alertmanager"))
    assert await claimed(store) == []
    assert await store.oldest_pending("gitlab") is None
    assert await store.oldest_pending("alertmanager") == NOW


async def test_what_was_finished_long_ago_is_forgotten(store: DeliveryStore) -> None:
    await store.put(new("old", state=DeliveryState.IGNORED, received_at=NOW - 100))
    await store.put(new("new", state=DeliveryState.IGNORED))
    await store.put(new("pending", received_at=NOW - 100))
    alert = {"source": "alertmanager", "lane": "alertmanager/1"}
    await store.put(new("alert", received_at=NOW - 100, **alert))
    await store.forget(NOW - 50)
    assert await store.counts() == {"ignored": 1, "pending": 1}


async def test_what_a_flow_was_told_is_remembered(store: DeliveryStore) -> None:
    assert await store.dispatch("onboard/1") is None
    wish = Dispatch("onboard/1", "digest", 1, "shop")
    await store.remember(wish)
    await store.remember(replace(wish, generation=2, run_id="run", tries=3))
    assert await store.dispatch("onboard/1") == Dispatch("onboard/1", "digest", 2, "shop", "run", 3)


async def test_one_act_that_fails_does_not_take_its_neighbours_with_it(
    store: DeliveryStore,
) -> None:
    def fails(_: Engine) -> None:
        raise ZeroDivisionError

    acts = [store.put(new("a")), store._do(fails), store.put(new("b"))]
    results = await asyncio.gather(*acts, return_exceptions=True)
    assert results[0] is True
    assert isinstance(results[1], Unreachable)
    assert results[2] is True
    assert await store.pending() == 2


async def test_many_callers_share_few_commits(store: DeliveryStore) -> None:
    commits = 0
    commit = store._engine.commit

    def counted() -> None:
        nonlocal commits
        commits += 1
        time.sleep(0.005)
        commit()

    store._engine.commit = counted  # type: ignore[method-assign]
    await asyncio.gather(*(store.put(new(str(number))) for number in range(500)))
    assert commits < 20


async def test_more_than_can_be_written_is_refused_and_not_gathered(store: DeliveryStore) -> None:
    begun, released = threading.Event(), threading.Event()

    def hangs(_: Engine) -> None:
        begun.set()
        released.wait(60)

    hold = asyncio.create_task(store._do(hangs))
    while not begun.is_set():
        await asyncio.sleep(0.01)
    acts = [
        asyncio.create_task(store.put(new(str(number)))) for number in range(WAITING_AT_MOST + 10)
    ]
    await asyncio.sleep(0)
    released.set()
    results = await asyncio.gather(*acts, return_exceptions=True)
    await hold
    refused = [result for result in results if isinstance(result, Unreachable)]
    assert len(refused) == 10
    assert await store.pending() == WAITING_AT_MOST


# --- trouble ------------------------------------------------------------------------------------


def test_a_file_is_opened_by_one_process_only(tmp_path: Path) -> None:
    held = SqliteEngine(tmp_path / "deliveries.db")
    with pytest.raises(Conflict, match="another gateway"):
        SqliteEngine(tmp_path / "deliveries.db")
    held.close()
    SqliteEngine(tmp_path / "deliveries.db").close()


def test_a_file_that_is_no_database_is_said_so_and_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "deliveries.db"
    file.write_bytes(b"not a database" * 100)
    with pytest.raises(PermanentError, match="Restore it"):
        SqliteEngine(file)
    assert file.read_bytes().startswith(b"not a database")


def test_commits_are_on_disk_before_they_are_told(tmp_path: Path) -> None:
    engine = SqliteEngine(tmp_path / "deliveries.db")
    assert engine.execute("PRAGMA synchronous") == [(2,)]
    assert engine.execute("PRAGMA journal_mode") == [("wal",)]
    engine.close()


async def test_a_full_disk_is_told_and_passes(tmp_path: Path) -> None:
    engine = SqliteEngine(tmp_path / "deliveries.db")
    store = DeliveryStore(engine)
    pages = engine._connection.execute("PRAGMA page_count").fetchone()[0]
    await store._do(lambda _: engine._connection.execute(f"PRAGMA max_page_count={pages + 2}"))
    big = "x" * 50_000
    with pytest.raises(Unreachable, match="OperationalError"):
        await store.put(new("a", content=big))
    await store._do(lambda _: engine._connection.execute("PRAGMA max_page_count=100000"))
    assert await store.put(new("a", content=big))
    store.close()
    with sqlite3.connect(tmp_path / "deliveries.db") as database:
        assert database.execute("SELECT count(*) FROM deliveries").fetchone() == (1,)


async def test_a_lost_connection_to_postgresql_is_made_anew(postgres: BarePostgresql) -> None:
    with postgres.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS deliveries, lanes, dispatches")
        store = DeliveryStore(PostgresqlEngine(postgres.login))
        assert await store.put(new("a"))
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'infraflows-gateway'"
        )
    with pytest.raises(Unreachable):
        await store.put(new("b"))
    assert await store.put(new("b"))
    assert not await store.put(new("a"))
    store.close()


def test_postgresql_that_does_not_answer_is_told_without_its_password(
    postgres: BarePostgresql,
) -> None:
    with pytest.raises(Unreachable, match="Check its address") as caught:
        PostgresqlEngine({**postgres.login, "password": "wrong-password"})
    assert "wrong-password" not in str(caught.value)
