"""Audiences that are alike are found by the index of unusual ids: the same pairs as among all audiences."""

import random
from collections.abc import Iterator
from itertools import groupby, pairwise

import pytest
from django.db import connection
from django.utils.timezone import now

from audiences import naming
from audiences.insight import similar_slugs
from audiences.models import Audience, Install
from audiences.operations import take_over
from tests import many
from tests.delivering import make_install

pytestmark = pytest.mark.django_db

SLUGS = (
    "gold club",
    "gold-club",
    "gold.club",
    "Gold_Club",
    "goldé",
    "goldè",
    "İ",
    "i",
    "i̇",
    "ß",
    "SS",
    "vip",
    "vip_vip",
)


def fill(chance: random.Random) -> None:
    """Installs whose audiences were named, recreated and renamed in Lytics, and of which some are settled."""
    for name, prefix in (("A", "lytics_"), ("B", "lytics_"), ("C", "shop_"), ("D", "lytics_vip_")):
        install = make_install(name=name, odp_prefix=prefix)
        taken: set[str] = set()
        for number in range(chance.randint(2, 14)):
            slug, segment = chance.choice(SLUGS), chance.choice((f"vip{number}", f"{number}"))
            odp_id = naming.free_odp_id(slug, segment, taken, prefix=prefix)
            taken.add(odp_id)
            Audience.objects.create(
                install=install,
                segment_id=segment,
                slug=slug,
                latest_slug=slug if chance.random() < 0.7 else chance.choice(SLUGS),
                odp_id=odp_id,
                slug_settled_at=now() if chance.random() < 0.2 else None,
            )
    if chance.random() < 0.3:
        Install.objects.filter(name="B").update(odp_prefix="new_")


def recreated() -> Iterator[tuple[int, int]]:
    """Each undecided audience with the newest older one of its install and slug."""
    audiences = sorted(Audience.objects.all(), key=lambda one: (one.install_id, one.latest_slug, one.pk))
    for _, same in groupby(audiences, key=lambda one: (one.install_id, one.latest_slug)):
        alike = list(same)
        for older, newer in pairwise(alike):
            if newer.slug_settled_at is None:
                yield newer.pk, older.pk


def similar() -> Iterator[tuple[int, int]]:
    """Pairs of audiences with different slugs that give the same plain id. The second of a pair has that id."""
    holders = {(one.install_id, one.odp_id): one for one in Audience.objects.all()}
    for one in Audience.objects.select_related("install").filter(slug_settled_at=None):
        plain = naming.odp_id(one.slug, prefix=one.install.odp_prefix)
        holder = holders.get((one.install_id, plain), one)
        if holder.slug != one.slug and holder.latest_slug != one.latest_slug:
            yield one.pk, holder.pk


@pytest.mark.parametrize("seed", range(40))
def test_the_index_finds_all_that_are_alike(seed: int) -> None:
    fill(random.Random(seed))
    owners = dict(Audience.objects.values_list("pk", "install_id"))
    for install in (None, *Install.objects.values_list("pk", flat=True)):
        pairs, total = take_over.undecided_pairs(1_000, install)
        of_install = [pair for pair in sorted(recreated()) if install in (None, owners[pair[0]])]
        assert [(newer.pk, older.pk) for newer, older in pairs] == of_install
        assert total == len(of_install)
        assert similar_slugs.unnoticed(install) == [
            pair for pair in sorted(similar()) if install in (None, owners[pair[0]])
        ]


def test_the_unusual_are_read_by_their_index() -> None:
    many.fill(10, 500)
    for statement, values in (
        (take_over._UNDECIDED, {"install": None, "limit": 10}),
        (similar_slugs._SUFFIXED, {"install": None, "compared": 1_000}),
    ):
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN {statement.text}", values)
            plan = "\n".join(row[0] for row in cursor.fetchall())
        assert "audiences_with_unusual_id" in plan
