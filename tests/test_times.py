"""Lytics' times: RFC 3339 with up to nine fraction digits and any offset, exact to the nanosecond."""

import contextlib
import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lytics import times
from lytics.times import SECOND

NOON = 1_772_452_800 * times.SECOND  # 2026-03-02T12:00:00Z


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-03-02T12:00:00Z", NOON),
        ("2026-03-02T12:00:00.000000001Z", NOON + 1),
        ("2026-03-02T12:00:00.123456789Z", NOON + 123_456_789),
        ("2026-03-02T12:00:00.5Z", NOON + 500_000_000),
        ("2026-03-02T12:00:00.65Z", NOON + 650_000_000),
        ("2026-03-02T05:00:00-07:00", NOON),
        ("2026-03-02T17:30:00.25+05:30", NOON + 250_000_000),
        ("2026-03-03T11:59:00+23:59", NOON),
        ("2026-03-02T12:00:00", NOON),
        ("2026-03-02 12:00:00Z", NOON),
        ("2026-03-02t12:00:00z", NOON),
        ("2026-03-02T12:00:00+0000", NOON),
        ("2026-03-02 12:00:00 +0000 UTC", NOON),
        ("2026-03-02 12:00:00.5 UTC", NOON + 500_000_000),
        ("2026-03-02 12:00:00 GMT", NOON),
        ("2026-03-02 13:00:00 +0100 CET", NOON),
        ("2026-03-02 09:00:00.000 -0300 -03", NOON),
        ("2026-03-02 12:00:00 +0000 UTC m=+0.000012", NOON),
        (" 2026-03-02T12:00:00Z\n", NOON),
        ("1969-12-31T23:59:59.999999999Z", -1),
        ("1677-09-21T00:12:43.145224192Z", -(2**63)),
        ("2262-04-11T23:47:16.854775807Z", 2**63 - 1),
        # Outside of what the column holds: its first or last moment, before or ahead of every call.
        ("1677-09-21T00:12:43.145224191Z", -(2**63)),
        ("0001-01-01T00:00:00+23:59", -(2**63)),
        ("2262-04-11T23:47:16.854775808Z", 2**63 - 1),
        ("9999-12-31T23:59:59Z", 2**63 - 1),
    ],
)
def test_it_reads_a_time_exactly(text: str, expected: int) -> None:
    assert times.nanoseconds(text) == expected


def test_it_cuts_digits_beyond_the_ninth_and_does_not_round() -> None:
    assert times.nanoseconds("2026-03-02T12:00:00.1234567899Z") == NOON + 123_456_789


@pytest.mark.parametrize(
    "text",
    [
        "yesterday",
        "",
        "2026-03-02",
        "2026-03-02T12:00",
        "2026-02-30T12:00:00Z",
        "2026-03-02T12:61:00Z",
        "2026-03-02T12:00:00+99:99",
        "2026-03-02T12:00:00+24:00",
        "2026-03-02T12:00:00+05:60",
        "2026-03-02T12:00:00Z and more",
        "2026-03-02T12:00:00+01:00 UTC",
        "2026-03-02T12:00:00+01:00 GMT",
        "2026-03-02 12:00:00 CET",
        "2026-03-02 12:00:00 UTC CET",
        "2026-03-02 12:00:00 +0100 cet",
        "٢٠٢٦-03-02T12:00:00Z",
        "٢٠٢٦-03-02T12:00:00.5Z",
        "2026-03-02T12:00:00.٣Z",
        "2026-03-02T12:00:00.5X",
        "2026-03-02T12:00:60.5Z",
        "2026-03-02T12:00:60Z",
        "2026-03-02T23:59:61Z",
        "2026-03-02T23:59:60+01:00",
        "2026-03-02T12:00:00Z5Z",
        "2026-03-02T12:00:00ZZ",
        "2026-03-02T12:00:00.Z",
        "2026-W10-1T12:00:00Z",
        "2026-03-02T24:00:00.5Z",
        "2026-W10-1T12:00:00.5Z",
        "20260302T120:00:00.5Z",
        "1772452800",
        "0000-01-01T00:00:00Z",
    ],
)
def test_it_rejects_invalid_times(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        times.nanoseconds(text)


@pytest.mark.parametrize("text", ["2016-12-31T23:59:60.25Z", "2016-12-31t15:59:60.25-08:00"])
def test_a_leap_second_is_the_second_after_it(text: str) -> None:
    assert times.nanoseconds(text) == times.nanoseconds("2017-01-01T00:00:00.25Z")


@pytest.mark.parametrize("text", [None, "", "  ", "0001-01-01T00:00:00Z", "0001-01-01 00:00:00 +0000 GMT"])
def test_it_recognises_the_placeholder_of_lytics_for_no_time(text: str | None) -> None:
    assert times.is_missing(text)
    assert not times.is_missing("2026-03-02T12:00:00Z")


@given(
    st.datetimes(min_value=datetime(1680, 1, 1), max_value=datetime(2260, 1, 1)),  # noqa: DTZ001 — hypothesis wants naive
    st.integers(-23 * 60 - 59, 23 * 60 + 59),
)
def test_any_offset_names_the_same_instant(naive: datetime, minutes: int) -> None:
    there = timezone(timedelta(minutes=minutes))
    at = naive.replace(tzinfo=there)
    assert times.nanoseconds(at.isoformat()) == times.from_moment(at)
    assert times.nanoseconds(times.text(times.from_moment(at))) == times.from_moment(at)


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_moment_is_the_instant_cut_to_microseconds(value: int) -> None:
    at = times.moment(value)
    assert at.tzinfo is UTC
    assert times.from_moment(at) == value // 1000 * 1000


@given(st.text())
def test_no_text_makes_it_fail_in_another_way(text: str) -> None:
    with contextlib.suppress(ValueError):
        times.nanoseconds(text)


# --- Numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (1_772_442_900, 1_772_442_900 * SECOND),
        ("1772442900", 1_772_442_900 * SECOND),
        (1_772_442_900.25, 1_772_442_900 * SECOND + SECOND // 4),
        ("1772442900.123456789", 1_772_442_900_123_456_789),
        (1_772_442_900_123, 1_772_442_900_123 * 10**6),
        ("1772442900123", 1_772_442_900_123 * 10**6),
        (1_772_442_900_123_456, 1_772_442_900_123_456 * 10**3),
        ("1772442900123456", 1_772_442_900_123_456 * 10**3),
        (1_772_442_900_123_456_789, 1_772_442_900_123_456_789),
        (" 1772442900123456789 ", 1_772_442_900_123_456_789),
        (1.7724429e9, 1_772_442_900 * SECOND),
        ("1.7724429e12", 1_772_442_900 * SECOND),
        (10_413_792_000, 2**63 - 1),
        (99_999_999_999, 2**63 - 1),
        ("10413792000000", 2**63 - 1),
        (2**63, 2**63 - 1),
        ("2026-03-02T09:15:00Z", 1_772_442_900 * SECOND),
    ],
)
def test_a_number_counts_in_the_unit_of_its_size(told: str | float, expected: int) -> None:
    assert times.read(told) == expected


@pytest.mark.parametrize(
    "told", [5, -1_772_442_900, "-5", 20_260_302, 99_999_999, 10**20, 1e40, "1e999", "12:00", "nan", "", "1e", True]
)
def test_a_number_that_is_no_time_is_unreadable(told: str | float) -> None:
    with pytest.raises(ValueError, match="time"):
        times.read(told)


@pytest.mark.parametrize(
    "told",
    [
        *(None, "", "  ", "0", "0.0", "-0", 0, 0.0, -0.0, -62135596800, -62135596800000, "-62135596800"),
        *("0000-00-00 00:00:00", "0000-01-01T00:00:00Z"),
        *("0001-01-01T00:00:00Z", "0001-01-01T00:00:00+00:00", "0001-01-01T00:00:00.000Z", "0001-01-01 00:00:00"),
    ],
)
def test_nothing_and_zero_are_missing(told: str | float | None) -> None:
    assert times.is_missing(told)


@pytest.mark.parametrize("told", [202601051000, "202601051000", 199912312359, 20260105])
def test_a_date_written_as_a_number_is_no_time(told: str | int) -> None:
    """By its size 202601051000 would be milliseconds, and a day in 1976."""
    with pytest.raises(ValueError, match="no time since"):
        times.read(told)
