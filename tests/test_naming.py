"""From a slug to an ODP id."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiences import naming
from audiences.models import Audience


@pytest.mark.parametrize(
    ("slug", "odp_id"),
    [
        ("gold_club", "lytics_gold_club"),
        ("Gold-Club.2026", "lytics_gold_club_2026"),
        ("gold  - club", "lytics_gold_club"),
        ("2026 buyers", "lytics_2026_buyers"),
        ("a__b", "lytics_a__b"),
        ("a_-_b", "lytics_a___b"),
        ("café/été", "lytics_caf_t_"),
        ("ÄRGER", "lytics__rger"),
        ("金", "lytics__"),
        ("'; DROP TABLE--", "lytics__drop_table_"),
    ],
)
def test_a_run_of_other_characters_becomes_one_underscore(slug: str, odp_id: str) -> None:
    assert naming.odp_id(slug) == odp_id


@given(st.text(min_size=1))
def test_any_slug_gives_a_plain_id(slug: str) -> None:
    assert re.fullmatch(r"lytics_[a-z0-9_]+", naming.odp_id(slug))


def test_a_free_id_is_used_unchanged() -> None:
    assert naming.free_odp_id("gold_club", "5D2A91c07e", set()) == "lytics_gold_club"


def test_a_used_id_gets_a_suffix_from_the_segment() -> None:
    assert naming.free_odp_id("gold_club", "5D2A91c07e", {"lytics_gold_club"}) == "lytics_gold_club_5d2a91"


def test_the_suffix_grows_until_it_is_free() -> None:
    taken = {"lytics_gold_club", "lytics_gold_club_5d2a91", "lytics_gold_club_5d2a91c"}
    assert naming.free_odp_id("gold_club", "5D2A91c07e", taken) == "lytics_gold_club_5d2a91c0"


@given(st.text(), st.integers(1, 30))
def test_as_many_segments_as_want_one_id_all_get_one_of_their_own(segment_id: str, wanted: int) -> None:
    taken: set[str] = set()
    for _ in range(wanted):
        free = naming.free_odp_id("gold_club", segment_id, taken)
        assert re.fullmatch(r"lytics_[a-z0-9_]+", free)
        assert free not in taken
        taken.add(free)


@pytest.mark.parametrize("segment_id", ["5D2A91c07e", "7" * 500, "x"])
def test_an_id_with_a_suffix_is_as_long_as_its_column_at_most(segment_id: str) -> None:
    taken: set[str] = set()
    for _ in range(12):
        free = naming.free_odp_id("g" * 500, segment_id, taken, prefix=f"lytics_{'e' * 32}_")
        assert len(free) <= naming.LONGEST_ODP_ID == Audience._meta.get_field("odp_id").max_length
        assert free not in taken
        taken.add(free)


def test_the_label_holds_the_slug_as_it_was_typed() -> None:
    assert naming.label("Gold-Club.2026") == "Lytics - Gold-Club.2026"
