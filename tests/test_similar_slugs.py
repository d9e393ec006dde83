"""Slugs that lose their letters in the ODP id: the warning where two look alike, and the slug shown beside the id."""

import json
from html import unescape

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from audiences.front import lines
from audiences.insight import similar_slugs
from audiences.models import Audience, Install
from audiences.receiving import ingest
from tests.delivering import make_install
from tests.messages import message, transition
from tests.test_admin import press, url

pytestmark = pytest.mark.django_db

# The list of all troubles: Now merges ten alike into one line.
ALL = lines.url_of_all("")

SHOP_SLUGS = {
    "emoji": ("🎉party🎉", "🎈party🎈"),
    "Arabic": ("عملاء", "مشتركون"),
    "Greek": ("πελάτες", "αγορές"),
    "punctuation": ("gold-club", "gold.club"),
}


@pytest.fixture
def shop() -> Install:
    return make_install()


def come(install: Install, *slugs: str, **segments: str) -> list[Audience]:
    for number, slug in enumerate(slugs):
        one = message(transition(segment=f"{number}f3a9c{slug}", slug=slug))
        ingest.receive(install, json.dumps([one]).encode())
    return list(Audience.objects.filter(install=install).order_by("pk"))


def now_page(client: Client) -> list[str]:
    return [alert.what for alert in client.get("/admin/").context["alerts"]]


def page(client: Client, audience: Audience) -> str:
    return unescape(client.get(url("change", audience)).content.decode())


@pytest.mark.parametrize("slugs", SHOP_SLUGS.values(), ids=SHOP_SLUGS)
def test_two_ids_that_differ_only_by_a_suffix_are_shown_on_both_pages_and_the_front_page(
    operator: Client, shop: Install, slugs: tuple[str, str]
) -> None:
    first, second = come(shop, *slugs)
    assert second.odp_id.startswith(f"{first.odp_id}_")
    for one, other in ((first, second), (second, first)):
        assert f"becomes the same ODP id as that of {other.odp_id} ({other.slug})" in page(operator, one)
        assert f"named Lytics - {one.slug}" in page(operator, one)
    what = f"{second.odp_id} and {first.odp_id} differ only by a suffix (Shop)"
    assert what in now_page(operator)
    assert str(first) in press(operator, "keep-both", second).replace("&#x27;", "'")
    assert what not in now_page(operator)
    assert "becomes the same ODP id" in page(operator, second)


def test_ids_that_differ_by_more_are_not_reported(operator: Client, shop: Install) -> None:
    come(shop, "gold", "gold_club", "gold_2")
    come(make_install(name="Other"), "gold")
    assert not [what for what in now_page(operator) if "suffix" in what]
    for audience in Audience.objects.all():
        assert "becomes the same" not in page(operator, audience)


def test_a_segment_recreated_under_one_slug_is_reported_once_as_recreated(operator: Client, shop: Install) -> None:
    for segment in ("s1", "s2"):
        ingest.receive(shop, json.dumps([message(transition(segment=segment, slug="🎉🎉"))]).encode())
    assert len([what for what in now_page(operator) if "was recreated" in what]) == 1
    assert not [what for what in now_page(operator) if "suffix" in what]


def test_audiences_with_another_id_do_not_take_the_place_of_alike_ones(
    operator: Client, shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those were cut off, and so reported as resolved, by newer ones that were recreated or have another prefix."""
    monkeypatch.setattr(similar_slugs, "COMPARED", 2)
    first, second = come(shop, "gold-club", "gold.club")
    for segment in ("s1", "s2", "s3"):
        ingest.receive(shop, json.dumps([message(transition(segment=segment, slug="vip"))]).encode())
    come(shop, "gold_club_1", "gold_club_2", "gold_club_3")
    Audience.objects.filter(slug__startswith="gold_club_").update(slug_settled_at=None)
    assert similar_slugs.unnoticed() == [(second.pk, first.pk)]
    assert similar_slugs.twins(first) == [second]


@pytest.mark.parametrize("slug", ["🎉", "عملاء", "---", "__"])
def test_an_id_that_keeps_nothing_of_the_slug_is_reported(operator: Client, shop: Install, slug: str) -> None:
    (audience,) = come(shop, slug)
    assert f"says nothing, because the slug {slug} has no letter" in page(operator, audience)


@pytest.mark.parametrize(
    ("slug", "shown"),
    [
        ("gold_club", "lytics_gold_club"),
        ("Gold-Club", "lytics_gold_club"),
        ("🎉party🎉", "lytics__party_ (🎉party🎉)"),
        ("عملاء", "lytics__ (عملاء)"),
        ("café", "lytics_caf_ (café)"),
    ],
)
def test_the_slug_is_shown_beside_an_id_that_does_not_resemble_it(
    operator: Client, shop: Install, slug: str, shown: str
) -> None:
    (audience,) = come(shop, slug)
    assert str(audience) == shown
    for address in ("/admin/audiences/audience/", url("change", audience)):
        assert shown in unescape(operator.get(address).content.decode())


def test_an_edited_slug_is_shown_beside_the_id(shop: Install) -> None:
    (audience,) = come(shop, "gold")
    audience.latest_slug = "platinum"
    assert str(audience) == "lytics_gold (platinum)"


def test_the_front_page_needs_no_more_queries_for_ten_pairs(operator: Client, shop: Install) -> None:
    def queries(pairs: int) -> int:
        come(shop, "🎉", *("🎈" * number for number in range(1, pairs + 1)))
        operator.get(ALL)
        with CaptureQueriesContext(connection) as seen:
            found = [one for one in operator.get(ALL).context["alerts"] if "only by a suffix" in one.what]
        assert [len(one.buttons) for one in found] == [1] * pairs
        return len(seen)

    assert queries(1) == queries(10)


def test_the_number_of_queries_does_not_depend_on_the_number_of_pairs(shop: Install) -> None:
    come(shop, "🎉", "🎈")
    with CaptureQueriesContext(connection) as few:
        assert len(similar_slugs.unnoticed()) == 1
    come(shop, *("🎃" * number for number in range(1, 9)))
    with CaptureQueriesContext(connection) as many:
        assert len(similar_slugs.unnoticed()) > 1
    assert len(few) == len(many) == 3
