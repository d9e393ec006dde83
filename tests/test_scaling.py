"""The queries in docs/scaling.md run in PostgreSQL."""

import re

import pytest
from django.db import connection

from lytics_sync.env import PROJECT_DIR
from tests.delivering import claim, enter, make_audience, make_install

pytestmark = pytest.mark.django_db(transaction=True)


def answers(nth: int) -> list[dict[str, object]]:
    statements = re.findall(r"```sql\n(.*?)```", (PROJECT_DIR / "docs" / "scaling.md").read_text("utf-8"), re.DOTALL)
    with connection.cursor() as cursor:
        cursor.execute(statements[nth])
        columns = [column.name for column in cursor.description or ()]
        return [dict(zip(columns, row, strict=True)) for row in cursor]


def test_the_scaling_figures_count_deliverable_work_only() -> None:
    shop, off = make_install(), make_install(name="Off", enabled=False)
    gold, silver = make_audience(shop), make_audience(shop, "silver")
    for audience in (gold, silver, make_audience(off, "bronze")):
        enter(audience, "anna", "ben")
    (found,) = answers(0)
    assert (found["name"], found["lanes"], found["waiting"]) == ("Shop", 2, 4)
    assert 0 <= float(str(found["oldest_seconds"])) < 60
    assert answers(1) == [{"under_way": 0}]
    claim(shop)
    assert answers(1) == [{"under_way": 1}]
