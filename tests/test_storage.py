"""Tables whose rows are updated again and again keep their updates HOT, and are vacuumed early."""

import pytest
from django.db import connection

# What each call, claim, settle or request changes, by table.
OFTEN_CHANGED = {
    "audiences_audience": ["last_sequence"],
    "audiences_lane": ["delivered_sequence", "member_count", "last_served_at", "lease_token", "lease_expires_at"],
    "audiences_pace": ["line_at", "gate_at"],
    "audiences_install": ["brake_since_at", "brake_until_at", "brake_failures"],
}


def options_of(table: str) -> dict[str, float]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT option_name, option_value::float FROM pg_class, pg_options_to_table(reloptions)"
            " WHERE oid = %s::regclass",
            [table],
        )
        return dict(cursor.fetchall())


@pytest.mark.django_db
@pytest.mark.parametrize("table", OFTEN_CHANGED)
def test_pages_have_room_for_new_versions_and_are_vacuumed_early(table: str) -> None:
    options = options_of(table)
    assert options["fillfactor"] <= 10
    assert (options["autovacuum_vacuum_scale_factor"], options["autovacuum_vacuum_cost_delay"]) == (0, 0)
    assert options["autovacuum_vacuum_threshold"] <= 1000


@pytest.mark.django_db
@pytest.mark.parametrize("table", ["audiences_run", "audiences_delivery"])
def test_tables_that_grow_are_vacuumed_after_a_number_of_rows_and_not_after_a_share(table: str) -> None:
    options = options_of(table)
    assert options["autovacuum_vacuum_scale_factor"] == 0
    assert options["autovacuum_vacuum_threshold"] <= 50_000


@pytest.mark.django_db
@pytest.mark.parametrize("table", OFTEN_CHANGED)
def test_no_index_has_a_column_that_changes_often(table: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = %s::regclass", [table])
        definitions = [definition for (definition,) in cursor.fetchall()]
        cursor.execute("SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass", [table])
        columns = {name for (name,) in cursor.fetchall()}
    assert columns >= set(OFTEN_CHANGED[table])
    assert [(name, one) for name in OFTEN_CHANGED[table] for one in definitions if name in one] == []
