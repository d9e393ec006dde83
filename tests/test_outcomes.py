"""What an answer of ODP means: the table of statuses, the words in its errors, and when to come back."""

import http.client
import socket
import ssl
from datetime import UTC, datetime
from typing import Any

import pytest
import requests
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from odp.outcomes import (
    LONGEST_WORDS,
    Outcome,
    error_words,
    named_items,
    not_odp,
    outcome_of,
    readable,
)
from outgoing.network_errors import elsewhere, words_for
from outgoing.retry_after import LONGEST_RETRY_AFTER, retry_after_seconds

RETRY, REFUSED = Outcome.RETRY_LATER, Outcome.REJECTED
NOW = datetime(2026, 3, 2, 9, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("statuses", "outcome"),
    [
        ([200, 201, 202, 203, 204, 206, 226, 299], Outcome.DELIVERED),
        ([400, 402, 409, 411, 413, 414, 415, 422, 428, 431, 499], REFUSED),
        ([401, 403], Outcome.UNAUTHORISED),
        ([408, 425, 429], RETRY),
        ([500, 501, 502, 503, 504, 507, 520, 522, 599], RETRY),
        # No answers of ODP's own to a write: the host setting points at something else.
        ([404, 405, 406, 407, 410, 421, 451], RETRY),
        ([300, 301, 302, 303, 304, 307, 308], RETRY),
        ([100, 101, 199, 600, 999], RETRY),
    ],
)
def test_each_status_has_one_outcome(statuses: list[int], outcome: Outcome) -> None:
    assert {status: outcome_of(status) for status in statuses} == dict.fromkeys(statuses, outcome)


@given(st.integers(100, 999))
def test_only_client_errors_are_rejections(status: int) -> None:
    assert outcome_of(status) is not Outcome.UNKNOWN
    if outcome_of(status) in (REFUSED, Outcome.UNAUTHORISED):
        assert 400 <= status < 500


@pytest.mark.parametrize("status", [301, 302, 307, 404, 405, 407, 410, 421, 451])
def test_redirects_and_statuses_that_odp_never_sends_come_from_another_server(status: int) -> None:
    assert not_odp(status)


@pytest.mark.parametrize("status", [200, 400, 403, 408, 413, 425, 429, 500, 503])
def test_documented_statuses_are_not_blamed_on_another_server(status: int) -> None:
    assert not not_odp(status)


# --- Retry-After ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("86400", LONGEST_RETRY_AFTER),
        ("inf", LONGEST_RETRY_AFTER),
        ("9" * 400, LONGEST_RETRY_AFTER),
        ("Mon, 02 Mar 2026 09:15:30 GMT", 30.0),
        ("Mon, 02 Mar 2026 10:15:30 +0100", 30.0),
        ("Monday, 02-Mar-26 09:15:30 GMT", 30.0),
        ("Mon, 02 Mar 2026 09:14:00 GMT", 0.0),
        ("Tue, 03 Mar 2026 09:15:00 GMT", LONGEST_RETRY_AFTER),
        ("Mon, 02 Mar 2026 09:15:30 -0000", 30.0),
        ("Mon Mar  2 09:15:30 2026", 30.0),
        ("Fri, 31 Dec 99999999999999999999 23:59:59 GMT", None),
        ("Mon, 02 Mar 2026 09:15:30 +99999999999999999999", None),
        ("Mon, 99 Mar 2026 09:15:30 GMT", None),
        ("Mon, 02 Mar 99999 09:15:30 GMT", None),
    ],
)
def test_retry_after_is_read_in_both_of_its_forms(header: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(header, now=NOW) == seconds


def test_how_long_a_retry_after_is_believed_is_the_callers_choice() -> None:
    assert retry_after_seconds("86400", longest=60.0) == 60.0
    assert retry_after_seconds("86400", longest=100_000.0) == 86_400.0


@given(st.text())
def test_no_retry_after_makes_us_wait_for_ever_or_fail(header: str) -> None:
    seconds = retry_after_seconds(header)
    assert seconds is None or 0 <= seconds <= LONGEST_RETRY_AFTER


# --- Without a response ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(), "its host name could not be resolved. Check the ODP host of this install and the DNS"),
        (ssl.SSLCertVerificationError(), "its certificate is not trusted"),
        (ssl.SSLError(), "the encrypted connection (TLS) failed"),
        (ConnectionRefusedError(), "the host refuses connections"),
        (http.client.RemoteDisconnected(""), "it closed the connection without a response"),
        (ConnectionResetError(), "the connection broke off"),
        (TimeoutError(), "it did not respond in time"),
        (urllib3.exceptions.TimeoutError(), "it did not respond in time"),
        (urllib3.exceptions.IncompleteRead(1, 2), "its response ended early"),
        (http.client.BadStatusLine("SSH-2.0"), "its response is not HTTP"),
        (urllib3.exceptions.ProtocolError(), "its response ended early"),
        (OSError(), "the network has no route to its host"),
        (requests.exceptions.InvalidURL(), "the ODP host of this install is not a valid address"),
        (urllib3.exceptions.LocationParseError("x"), "the ODP host of this install is not a valid address"),
        (UnicodeError(), "the ODP host of this install is not a valid address"),
        (ValueError(), "its response is not readable"),
        (LookupError(), "its response is not readable"),
    ],
    ids=repr,
)
def test_the_innermost_cause_of_an_error_names_the_reason(error: Exception, words: str) -> None:
    outer = requests.ConnectionError()
    outer.__context__ = error
    assert words_for(outer).startswith(f"ODP could not be reached: {words}")


def test_a_reason_about_another_server_names_neither_odp_nor_its_settings() -> None:
    assert elsewhere(words_for(socket.gaierror())) == "its host name could not be resolved"
    assert elsewhere(words_for(UnicodeError())) == "its address is not valid"
    assert elsewhere("ODP sent no complete response in time") == "it sent no complete response in time"


# --- The words in an error -----------------------------------------------------------------------------------


def invalids(*items: Any) -> dict[str, Any]:
    return {"title": "Bad Request", "status": 400, "detail": {"invalids": list(items)}}


def test_items_are_named_by_position_with_odps_words() -> None:
    body = invalids({"event": 3, "message": "missing 'type' field"}, {"event": 0, "message": "no identifier"})
    assert named_items(body) == {3: "missing 'type' field", 0: "no identifier"}


@pytest.mark.parametrize("key", ["event", "index", "profile", "position"])
def test_the_word_for_the_position_does_not_matter(key: str) -> None:
    assert named_items(invalids({key: 2, "message": "bad"})) == {2: "bad"}


def test_other_numbers_are_not_read_as_the_position() -> None:
    item = {"code": 7, "status": 400, "line": 1, "event": 5, "message": "bad"}
    assert named_items(invalids(item)) == {5: "bad"}
    assert named_items(invalids({"code": 7, "status": 400, "message": "bad"})) == {}


def test_a_complaint_about_a_field_names_no_item() -> None:
    body = invalids({"field": "name", "reason": ["already used by another field", "too long"]})
    assert named_items(body) == {}
    assert error_words(body, "") == "already used by another field; too long"


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "text",
        7,
        {},
        {"detail": None},
        {"detail": "text"},
        {"detail": {"invalids": None}},
        {"detail": {"invalids": {"event": 1}}},
        invalids(None, [], "x", 3, {}, {"event": True}, {"event": -1}, {"event": "1"}, {"event": 1.0}),
    ],
)
def test_a_response_without_names_names_no_customer(body: Any) -> None:
    assert named_items(body) == {}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"title": "Bad Request", "detail": {"message": "could not be parsed"}}, "could not be parsed"),
        ({"message": "Forbidden"}, "Forbidden"),
        ({"code": 3, "message": "unknown comparator", "details": []}, "unknown comparator"),
        ({"title": "Not Found", "status": 404}, "Not Found"),
        ({"detail": "plain words", "title": "Bad Request"}, "plain words"),
        (invalids({"event": 0, "message": "first"}, {"event": 1, "message": "second"}), "first"),
        (invalids({"event": 0}), "{'event': 0}"),
        ({}, "the text itself"),
        (None, "the text itself"),
        ([1, 2], "the text itself"),
        ({"message": {"nested": 1}}, "the text itself"),
    ],
)
def test_the_most_telling_sentence_is_shown(body: Any, words: str) -> None:
    assert error_words(body, "  the text itself\n") == words


def test_a_body_of_which_a_tenth_is_binary_is_not_shown() -> None:
    assert error_words(None, "GIF89a \ufffd\x01 a picture") == ""
    assert error_words(None, "Le code postal est erron\ufffd, et la rue aussi") != ""


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["detail", "invalids", "message", "title", "event", "reason"]), inner)
    ),
)


@given(json, st.text(st.characters()))
def test_any_body_is_read_without_a_fault_and_its_words_can_be_stored(body: Any, text: str) -> None:
    told = [error_words(body, text), *named_items(body).values()]
    for words in told:
        assert "\x00" not in words
        assert len(words) <= LONGEST_WORDS
        words.encode()


def test_stored_reasons_keep_all_storable_characters() -> None:
    assert readable("a\x00b\ud800c é") == "ab?c é"


def test_a_long_sentence_is_cut() -> None:
    assert error_words({"message": "x" * (LONGEST_WORDS + 1)}, "") == "x" * LONGEST_WORDS
