"""The first client for Redis can be made by several threads at once."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from audiences import redis_client
from tests.threads import PATIENCE, start


@pytest.fixture(autouse=True)
def without_a_client() -> Iterator[None]:
    redis_client.client.cache_clear()
    yield
    redis_client.client.cache_clear()


def test_a_second_first_client_leaves_the_connections_of_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    both_make_one = threading.Barrier(2, timeout=PATIENCE)
    first_is_in_use, second_is_made = threading.Event(), threading.Event()
    from_url = redis.ConnectionPool.from_url
    mine = threading.local()

    def gated(*args: Any, **kwargs: Any) -> Any:
        both_make_one.wait()
        if mine.is_second:
            assert first_is_in_use.wait(PATIENCE)
        return from_url(*args, **kwargs)

    def first() -> Any:
        mine.is_second = False
        pool: Any = redis_client.client().pipeline().connection_pool
        connection = pool.get_connection()
        connection.send_command("PING")
        first_is_in_use.set()
        assert second_is_made.wait(PATIENCE)
        answer = connection.read_response()
        pool.release(connection)
        return answer

    def second() -> Any:
        mine.is_second = True
        client = redis_client.client()
        second_is_made.set()
        return client.ping()

    monkeypatch.setattr(redis.ConnectionPool, "from_url", gated)
    assert [future.result(PATIENCE) for future in start(first, second)] == [b"PONG", True]
