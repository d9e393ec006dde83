"""Prepared statements: values arrive unchanged, and each statement is planned once per connection."""

from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st
from psycopg.generators import pipeline_communicate

from audiences import prepared_statements

pytestmark = pytest.mark.django_db

# All that PostgreSQL keeps.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
NASTY = [
    '"',
    "\\",
    '\\"',
    "{",
    "}",
    ",",
    " ",
    "",
    "null",
    "NULL",
    "\t",
    "\n",
    "\r",
    "\\N",
    "\\.",
    '","',
    "é",
    "\U0001f600",
]


def as_array(values: list[str]) -> list[str]:
    with prepared_statements.cursor() as cursor:
        cursor.execute("SELECT %s::text[]", [prepared_statements.texts(values)])
        found: list[str] = cursor.fetchone()[0]
    return found


@given(st.lists(texts))
def test_any_texts_come_back_from_an_array_as_they_were(values: list[str]) -> None:
    assert as_array(values) == values


def test_texts_that_mean_something_in_an_array_are_only_texts() -> None:
    assert as_array(NASTY) == NASTY
    for text in NASTY:
        assert as_array([text]) == [text]


def test_numbers_make_an_array() -> None:
    with prepared_statements.cursor() as cursor:
        cursor.execute(
            "SELECT %s::bigint[], %s::boolean[]",
            [prepared_statements.numbers([1, -2, 2**62]), prepared_statements.numbers([])],
        )
        assert cursor.fetchone() == ([1, -2, 2**62], [])


def test_repeated_numbers_make_an_array() -> None:
    with prepared_statements.cursor() as cursor:
        cursor.execute(
            "SELECT %s::int[], %s::int[]",
            [prepared_statements.repeated([(7, 3), (2, 0), (5, 1)]), prepared_statements.repeated([(1, 0)])],
        )
        assert cursor.fetchone() == ([7, 7, 7, 5], [])


@pytest.fixture
def table(db: None) -> str:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE kept (place int PRIMARY KEY, text text) ON COMMIT DROP")
    return "COPY kept FROM STDIN"


def test_texts_that_mean_something_to_copy_are_only_texts(table: str) -> None:
    alone = [text for nasty in NASTY for text in prepared_statements.escaped([nasty])]
    rows = enumerate([*prepared_statements.escaped(NASTY), *alone])
    prepared_statements.copy(table, (f"{place}\t{text}\n" for place, text in rows))
    with connection.cursor() as cursor:
        cursor.execute("SELECT text FROM kept ORDER BY place")
        assert [text for (text,) in cursor.fetchall()] == NASTY * 2


def test_a_constraint_violated_by_a_copy_raises_the_error_of_django(table: str) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        prepared_statements.copy(table, ["1\ta\n", "1\tb\n"])


def test_a_statement_is_prepared_the_first_time_and_found_the_next() -> None:
    for number in range(3):
        with prepared_statements.cursor() as cursor:
            cursor.execute("SELECT %s::int AS told_apart_by_this", [number])
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT generic_plans + custom_plans FROM pg_prepared_statements WHERE statement LIKE %s",
            ["%told_apart_by_this%"],
        )
        assert cursor.fetchall() == [(3,)]


def test_statements_of_a_pipeline_are_answered_each_by_its_own_cursor() -> None:
    first, second = prepared_statements.cursor(), prepared_statements.cursor()
    with prepared_statements.pipeline():
        first.execute("SELECT 1")
        second.execute("SELECT 2")
    assert (first.fetchone(), second.fetchone()) == ((1,), (2,))


@pytest.mark.django_db(transaction=True)
def test_a_pipeline_talks_to_postgresql_at_its_end_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time costs two waits for the socket, and the thread may wait for Python's global lock after each."""
    times: list[int] = []

    def counted(*args: Any) -> Any:
        times.append(len(args[1]))
        return pipeline_communicate(*args)

    monkeypatch.setattr("psycopg._pipeline_base.pipeline_communicate", counted)
    with prepared_statements.pipeline():
        cursors = [prepared_statements.cursor() for _ in range(3)]
        for cursor in cursors:
            cursor.execute("SELECT 1")
        assert times == []
    assert [cursor.fetchone() for cursor in cursors] == [(1,)] * 3
    assert times == [1]  # the sync


def test_statements_of_a_pipeline_may_be_larger_than_all_buffers() -> None:
    large = [letter * (8 << 20) for letter in "abc"]
    with prepared_statements.pipeline():
        cursors = [prepared_statements.cursor() for _ in large]
        for cursor, text in zip(cursors, large, strict=True):
            cursor.execute("SELECT %s::text AS large", [text])
    assert [cursor.fetchone() for cursor in cursors] == [(text,) for text in large]


def test_a_number_of_another_size_makes_no_other_statement() -> None:
    with prepared_statements.cursor() as cursor:
        for number in (1, 1 << 20, 1 << 40):
            cursor.execute("SELECT %s::bigint AS number_of_any_size", [number])
            assert cursor.fetchone() == (number,)
        cursor.execute("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE %s", ["%of_any_size%"])
        assert cursor.fetchone() == (1,)


def test_they_are_counted_like_any_other() -> None:
    with CaptureQueriesContext(connection) as queries, prepared_statements.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert len(queries) == 1


@pytest.mark.django_db(transaction=True)
def test_a_pipeline_outside_a_transaction_is_one() -> None:
    def insert_twice() -> None:
        with prepared_statements.pipeline():
            prepared_statements.cursor().execute("INSERT INTO auth_group (id, name) VALUES (4711, 'a')")
            prepared_statements.cursor().execute("INSERT INTO auth_group (id, name) VALUES (4711, 'b')")

    with pytest.raises(IntegrityError):
        insert_twice()
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM auth_group WHERE id = 4711")
        assert cursor.fetchone() == (0,)
