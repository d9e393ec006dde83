"""The webhook through its real URL: the responses to Lytics, and the rows stored by then."""

import gzip
import io
import json
import socket
import time
import zlib
from typing import Any

import pytest
from django.db import connection
from django.http.response import HttpResponseBase
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences.encryption import decrypt
from audiences.models import Audience, Event, Install, Lane, Parked, Receipt, Token
from audiences.receiving import backlog, disk_usage, ingest, invalid_tokens, views
from lytics import reasons
from lytics.facts import Kind
from tests.messages import AT_NS, SECOND, body, message, single, transition
from tests.threads import eventually, together
from tests.web import Web, web_of_a_module

pytestmark = pytest.mark.django_db
real = pytest.mark.django_db(transaction=True)

ENTER, EXIT, CHANGE = Kind.ENTER, Kind.EXIT, Kind.CHANGE


def url(install: Install) -> str:
    return f"/webhooks/lytics/{install.public_id}"


def secret(install: Install) -> str:
    return install.tokens.get().secret


def send(install: Install, content: bytes, *, method: str = "POST", **extra: Any) -> HttpResponseBase:
    headers = {"HTTP_AUTHORIZATION": secret(install), **extra}
    kind = headers.pop("content_type", "application/json")
    return Client().generic(method, url(install), content, content_type=kind, **headers)


def counts(answer: HttpResponseBase) -> tuple[int, int, int, int, dict[str, int]]:
    assert answer.status_code == 200
    told = json.loads(getattr(answer, "content", b""))
    return told["received"], told["queued"], told["parked"], told["skipped"], told["parked_reasons"]


def is_later(answer: HttpResponseBase) -> bool:
    return answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0


def log(install: Install) -> list[tuple[str, str, int]]:
    events = Event.objects.filter(audience__install=install).order_by("audience_id", "sequence")
    return list(events.values_list("audience__odp_id", "identifier", "kind"))


def nothing_is_stored() -> bool:
    return not any(table.objects.exists() for table in (Receipt, Parked, Event, Audience, Lane))


# --- The sample payloads of the contract ----------------------------------------------------------------------


def test_a_single_enter(install: Install) -> None:
    assert counts(send(install, single(message()))) == (1, 1, 0, 0, {})
    assert log(install) == [("lytics_gold_club", "kim", ENTER)]


def test_a_single_exit_is_no_repeat_of_the_enter_with_its_id(install: Install) -> None:
    send(install, single(message(transition("exit", at="2026-03-03T01:15:00.5-07:00"))))
    send(install, single(message()))
    assert log(install) == [("lytics_gold_club", "kim", EXIT), ("lytics_gold_club", "kim", ENTER)]
    leave, enter = Event.objects.order_by("sequence")
    assert leave.occurred_ns - enter.occurred_ns == 23 * 3600 * SECOND + SECOND // 2


def test_a_batch_of_several_audiences_with_one_bad_item(install: Install) -> None:
    leave = message(transition("exit", segment="s2", slug="basket"), who="lee")
    answer = send(install, body(message(), leave, "oops"))
    assert counts(answer) == (3, 2, 1, 0, {reasons.NOT_A_MESSAGE: 1})
    assert log(install) == [("lytics_gold_club", "kim", ENTER), ("lytics_basket", "lee", EXIT)]


def test_a_list_of_identifiers(install: Install) -> None:
    Install.objects.update(identifier_field="_uids")
    answer = send(install, single(message(who=["c1", "c2", "c2", ""], field="_uids")))
    assert counts(answer) == (1, 2, 0, 1, {})
    assert [who for _, who, _ in log(install)] == ["c1", "c2"]


def test_a_change_sets_every_identifier_at_the_time_of_its_message(install: Install) -> None:
    Install.objects.update(identifier_field="_uids")
    assert counts(send(install, single(message(transition("change"), who=["c1", "c3"], field="_uids"))))[1] == 2
    assert log(install) == [("lytics_gold_club", who, CHANGE) for who in ("c1", "c3")]
    assert set(Event.objects.values_list("occurred_ns", flat=True)) == {AT_NS + 4_250_000_000}


def test_several_segment_events_of_which_one_has_a_scheduled_exit(install: Install) -> None:
    events = transition("exit"), transition(segment="s2", slug="comeback", exit="2099-01-01T00:00:00Z")
    one = message(*events)
    del one["id"]
    assert counts(send(install, single(one)))[1] == 2
    assert log(install) == [("lytics_gold_club", "kim", EXIT), ("lytics_comeback", "kim", ENTER)]
    assert set(Event.objects.values_list("occurred_ns", flat=True)) == {AT_NS}


@pytest.mark.parametrize("many", [False, True])
def test_a_cloud_event_alone_or_in_an_array(install: Install, many: bool) -> None:
    event = {"specversion": "1.0", "id": "1", "source": "/work/j", "type": "t", "data": message()["data"]}
    answer = send(install, body(event, event) if many else single(event), content_type="application/cloudevents+json")
    assert counts(answer)[:3] == ((2, 2, 0) if many else (1, 1, 0))
    assert Receipt.objects.get().job == "/work/j"


def test_a_message_without_segment_events_is_parked_with_the_setting_to_change(install: Install) -> None:
    answer = send(install, single({"data": {"_id": "kim"}, "meta": {"object": "user"}}))
    assert counts(answer) == (1, 0, 1, 0, {reasons.NO_SEGMENT_EVENTS: 1})
    assert "Export Fields" in reasons.HINTS[Parked.objects.get().reason]


def test_a_message_without_an_identifier_is_parked_with_the_fields_that_came(install: Install) -> None:
    one = message(who="kim@example.com", field="email")
    assert counts(send(install, single(one))) == (1, 0, 1, 0, {reasons.NO_IDENTIFIER: 1})
    assert Parked.objects.get().detail == "expected in '_id'; fields seen: email, segment_events"


def test_an_unknown_word_and_a_stream_event_are_parked_each_with_its_reason(install: Install) -> None:
    stream = {"id": "7", "data": {"email": "x"}, "meta": {"object": "event", "subscription_id": "web"}}
    answer = send(install, body(message(transition("paused")), stream))
    assert counts(answer) == (2, 0, 2, 0, {reasons.UNKNOWN_EVENT: 1, reasons.NOT_A_USER_EVENT: 1})


def test_awkward_slugs_and_a_number_that_no_float_holds(install: Install) -> None:
    events = transition(segment="c3", slug="Gold-Club.2026"), transition(segment="d4", slug="gold_club_2026")
    assert counts(send(install, single(message(*events, who=9007199254740993))))[1] == 2
    assert log(install) == [(f"lytics_gold_club_2026{end}", "9007199254740993", ENTER) for end in ("", "_d4")]


def test_an_empty_batch_is_answered_and_leaves_its_receipt(install: Install) -> None:
    assert counts(send(install, b"[]")) == (0, 0, 0, 0, {})
    assert Receipt.objects.get().verdict == "empty"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", reasons.NOT_JSON),
        (b"oops", reasons.NOT_JSON),
        (b"\xff\x00", reasons.NOT_JSON),
        (b"\x1f\x8b\x08\x00junk", reasons.PACKED_BODY),
        (b"[" * 60_000, reasons.CUT_OFF_BODY),
        (b'{"a":1', reasons.CUT_OFF_BODY),
    ],
)
def test_a_body_that_is_no_json_is_parked_whole(install: Install, content: bytes, reason: str) -> None:
    assert counts(send(install, content)) == (1, 0, 1, 0, {reason: 1})
    assert decrypt(bytes(Parked.objects.get().raw or b"")) == content


# --- However it is sent ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_all_methods_that_a_job_can_use_are_accepted_alike(install: Install, method: str) -> None:
    assert counts(send(install, body(message()), method=method))[1] == 1


@pytest.mark.parametrize(
    "kind",
    [
        *("", "text/plain", "application/cloudevents-batch+json", "application/x-www-form-urlencoded", "nonsense"),
        *("multipart/form-data; boundary=b", "application/json; charset=latin-1", "x" * 300),
    ],
)
def test_the_content_type_does_not_matter(install: Install, kind: str) -> None:
    assert counts(send(install, body(message(who="zoë")), content_type=kind))[1] == 1
    assert log(install) == [("lytics_gold_club", "zoë", ENTER)]


@pytest.mark.parametrize("accept", ["application/xml", "text/html", "image/*;q=0", "nonsense", ",", "a/b," * 500])
def test_the_accept_header_is_ignored(install: Install, accept: str) -> None:
    answer = send(install, body(message()), HTTP_ACCEPT=accept)
    assert counts(answer)[1] == 1
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("query", ["format=xml", "format=api", "token=x&a=b", "%ff=%00"])
def test_a_query_does_not_matter(install: Install, query: str) -> None:
    assert counts(send(install, body(message()), QUERY_STRING=query))[1] == 1


def test_a_byte_order_mark_does_not_matter(install: Install) -> None:
    assert counts(send(install, b"\xef\xbb\xbf" + body(message())))[1] == 1


PACKED = {
    "gzip": gzip.compress(body(message())),
    "deflate": zlib.compress(body(message())),
    "two gzip files": gzip.compress(body(message())[:40]) + gzip.compress(body(message())[40:]),
    "many gzip files": b"".join(gzip.compress(bytes([byte])) for byte in body(message())),
    "padded gzip": gzip.compress(body(message())) + b"\0" * 9000,
    "gzip in gzip": gzip.compress(gzip.compress(body(message()))),
    "deflate in gzip in gzip": gzip.compress(gzip.compress(zlib.compress(body(message())))),
    "gzip of nothing before the rest": gzip.compress(b"") + gzip.compress(body(message())),
}


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("told", ["", "gzip", "deflate", " GZIP ", "x-gzip", "identity", "br", "gzip, deflate"])
def test_a_packed_body_is_unpacked(install: Install, name: str, told: str) -> None:
    assert counts(send(install, PACKED[name], HTTP_CONTENT_ENCODING=told)) == (1, 1, 0, 0, {})


def test_a_body_that_is_packed_too_often_is_parked_as_packed(install: Install) -> None:
    often = gzip.compress(gzip.compress(PACKED["gzip in gzip"]))
    assert counts(send(install, often)) == (1, 0, 1, 0, {reasons.PACKED_BODY: 1})


def test_a_body_that_is_called_packed_and_is_not_is_read_as_it_is(install: Install) -> None:
    assert counts(send(install, body(message()), HTTP_CONTENT_ENCODING="gzip"))[1] == 1


@pytest.mark.parametrize(
    "broken",
    [
        PACKED["gzip"][:-1],
        PACKED["gzip"][:-9],
        PACKED["gzip"] + b"x",
        PACKED["gzip"] + PACKED["gzip"][:30],
        PACKED["gzip"][:20] + b"\xff" + PACKED["gzip"][21:],
    ],
)
def test_a_packed_body_that_is_broken_is_parked_as_it_was_sent(install: Install, broken: bytes) -> None:
    assert counts(send(install, broken, HTTP_CONTENT_ENCODING="gzip")) == (1, 0, 1, 0, {reasons.PACKED_BODY: 1})
    assert Receipt.objects.get().bytes == len(broken)


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.7"),
        ("", None),
        ("unix:", None),
    ],
)
def test_where_a_call_came_from_is_kept_and_never_fails_it(install: Install, address: str, kept: str | None) -> None:
    assert counts(send(install, body(message()), REMOTE_ADDR=address))[1] == 1
    assert Receipt.objects.get().source == Token.objects.get().last_used_from == kept


# --- Strangers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["", "Bearer", "nonsense", "Bearer lysync_nonsense", "\xff\xfe"])
def test_a_wrong_token_is_401_and_stores_nothing(install: Install, header: str) -> None:
    answer = send(install, body(message()), HTTP_AUTHORIZATION=header)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert nothing_is_stored()


def test_no_token_is_401(install: Install) -> None:
    assert Client().post(url(install), body(message()), content_type="application/json").status_code == 401
    assert nothing_is_stored()


def test_an_unknown_install_is_the_same_401_as_a_wrong_token(install: Install) -> None:
    unknown = Client().post("/webhooks/lytics/0000", b"[]", "application/json", HTTP_AUTHORIZATION=secret(install))
    wrong = send(install, b"[]", HTTP_AUTHORIZATION="wrong")
    assert (unknown.status_code, unknown.content) == (wrong.status_code, getattr(wrong, "content", None))
    assert nothing_is_stored()


@pytest.mark.parametrize(
    "path",
    ["", "/", "/lytics", "/lytics/", "/other", "/lytics/a/b", "/lytics/%00", "/lytics/é", f"/lytics/{'x' * 65}"],
)
@pytest.mark.parametrize("method", ["POST", "GET", "PUT", "DELETE"])
def test_any_other_url_below_webhooks_is_401_because_404_is_never_tried_again(path: str, method: str) -> None:
    answer = Client().generic(method, "/webhooks" + path, b"[]")
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_slash_at_the_end_does_no_harm(install: Install) -> None:
    answer = Client().post(url(install) + "/", body(message()), "application/json", HTTP_AUTHORIZATION=secret(install))
    assert counts(answer)[1] == 1


@pytest.mark.parametrize("method", ["GET", "DELETE", "HEAD", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("known", [True, False])
def test_other_methods_are_405_with_and_without_a_token(install: Install, method: str, known: bool) -> None:
    answer = send(install, body(message()), method=method, **({} if known else {"HTTP_AUTHORIZATION": ""}))
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "POST, PUT, PATCH"
    assert nothing_is_stored()


def stranger(install: Install | None, address: str = "192.0.2.1", **extra: Any) -> HttpResponseBase:
    path = url(install) if install else "/webhooks/lytics/nobody"
    headers = {"HTTP_AUTHORIZATION": "wrong", "REMOTE_ADDR": address, **extra}
    return Client().generic("POST", path, body(message()), content_type="application/json", **headers)


def test_too_many_wrong_tokens_get_429_without_a_reason(install: Install, settings: Settings) -> None:
    settings.BAD_TOKENS_PER_MINUTE = 3
    assert [stranger(install).status_code for _ in range(3)] == [401] * 3
    held_off = [stranger(install), stranger(None), Client().post("/webhooks/other", REMOTE_ADDR="192.0.2.1")]
    for answer in held_off:
        assert answer.status_code == 429
        assert 0 < int(answer.headers["Retry-After"]) <= 60
    assert stranger(install, "192.0.2.2").status_code == 401
    assert nothing_is_stored()


def test_a_valid_token_is_accepted_from_the_address_of_an_attacker(install: Install, settings: Settings) -> None:
    """Lytics calls from addresses that it shares with others."""
    settings.BAD_TOKENS_PER_MINUTE = 1
    for _ in range(20):
        stranger(install)
    assert stranger(install).status_code == 429
    assert counts(send(install, body(message()), REMOTE_ADDR="192.0.2.1"))[1] == 1


def test_being_held_off_ends_with_the_minute(
    install: Install, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.BAD_TOKENS_PER_MINUTE = 1
    assert [stranger(install).status_code for _ in range(2)] == [401, 429]
    monkeypatch.setattr(invalid_tokens, "_minute", lambda: -7)
    assert stranger(install).status_code == 401


def test_no_caller_is_rate_limited_when_the_limit_is_off(install: Install, settings: Settings) -> None:
    settings.BAD_TOKENS_PER_MINUTE = 0
    assert {stranger(install).status_code for _ in range(100)} == {401}


def test_the_memory_for_rejected_callers_is_bounded(
    install: Install, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.BAD_TOKENS_PER_MINUTE = 2
    monkeypatch.setattr(invalid_tokens, "ADDRESSES", 3)
    answers = [stranger(install, f"198.51.100.{number}").status_code for number in range(8)]
    assert answers == [401, 401, 401, 401, 401, 429, 429, 429]
    assert len(invalid_tokens._this_minute._counts) == 4


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("2001:db8::1", "2001:db8::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("", "", True),
    ],
)
def test_a_network_that_one_caller_has_for_itself_counts_as_one_address(
    install: Install, settings: Settings, one: str, other: str, together: bool
) -> None:
    settings.BAD_TOKENS_PER_MINUTE = 1
    assert stranger(install, one).status_code == 401
    assert stranger(install, other).status_code == (429 if together else 401)


def test_a_flood_of_rejected_calls_does_not_fill_the_log_file(
    install: Install, settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    monkeypatch.setattr(invalid_tokens.log, "warning", lambda words, **more: told.append(more["source"]))
    settings.BAD_TOKENS_PER_MINUTE = 1
    for _ in range(30):
        stranger(install)
    assert told == ["192.0.2.1"]
    assert len([record for record in caplog.records if record.name == "django.request"]) == 1


# --- Behind proxies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behind", "proxies", "told", "kept"),
    [
        (False, 1, "203.0.113.9", "192.0.2.7"),
        (True, 0, "203.0.113.9", "192.0.2.7"),
        (True, 1, "203.0.113.9", "203.0.113.9"),
        (True, 1, "10.0.0.1, 203.0.113.9", "203.0.113.9"),
        (True, 2, "10.0.0.1, 203.0.113.9, 198.51.100.1", "203.0.113.9"),
        (True, 2, "203.0.113.9", "203.0.113.9"),
        (True, 1, "203.0.113.9:51234", "203.0.113.9"),
        (True, 1, "[2001:db8::9]:51234", "2001:db8::9"),
        (True, 1, "2001:db8::9", "2001:db8::9"),
        (True, 1, "203.0.113.9, unknown", "192.0.2.7"),
        (True, 1, "", "192.0.2.7"),
        (True, 1, ",", "192.0.2.7"),
        (True, -1, "203.0.113.9", "192.0.2.7"),
    ],
)
def test_the_stored_address_is_the_one_that_trusted_proxies_report(
    install: Install, settings: Settings, behind: bool, proxies: int, told: str, kept: str
) -> None:
    settings.BEHIND_PROXY, settings.TRUSTED_PROXIES = behind, proxies
    answer = send(install, body(message()), REMOTE_ADDR="192.0.2.7", HTTP_X_FORWARDED_FOR=told)
    assert counts(answer)[1] == 1
    assert Receipt.objects.get().source == Token.objects.get().last_used_from == kept


def test_a_forged_forwarded_header_is_ignored_when_counting(install: Install, settings: Settings) -> None:
    settings.BEHIND_PROXY, settings.BAD_TOKENS_PER_MINUTE = True, 1
    answers = [
        stranger(install, "192.0.2.7", HTTP_X_FORWARDED_FOR=f"10.0.0.{number}, 203.0.113.9").status_code
        for number in range(2)
    ]
    assert answers == [401, 429]


# --- Come back later ------------------------------------------------------------------------------------------


def test_an_install_that_is_switched_off_asks_to_come_back(install: Install) -> None:
    Install.objects.update(enabled=False)
    assert is_later(send(install, body(message())))
    assert nothing_is_stored()
    assert send(install, b"", HTTP_AUTHORIZATION="wrong").status_code == 401


def test_too_high_a_backlog_asks_to_come_back_until_it_has_fallen(
    install: Install, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "FRESH_SECONDS", 0.0)
    settings.BACKLOG_HIGH_WATER = 2
    other = Install.objects.create(name="Other", odp_api_key="k")
    ingest.receive(other, body(*[message()] * 10))
    assert counts(send(install, body(message(), message())))[1] == 2
    assert counts(send(install, body(message())))[1] == 1  # at the mark is not above it
    assert is_later(send(install, body(message())))
    assert backlog.of(install.pk) == 3
    Lane.objects.filter(audience__install=install).update(delivered_sequence=1)
    assert counts(send(install, body(message())))[1] == 1


HELD: dict[str, dict[str, Any]] = {
    "blocked": {"lane": {"blocked_at": now(), "block_reason": "field gone"}},
    "paused": {"lane": {"paused_at": now(), "paused_by": "kim", "pause_reason": "a campaign"}},
    "never made": {
        "audience": {"hold_failures": 1, "hold_reason": "503", "hold_since_at": now(), "hold_until_at": now()}
    },
}


@pytest.mark.parametrize("held", HELD.values(), ids=HELD.keys())
def test_the_backlog_of_a_held_audience_turns_no_call_away(
    install: Install, settings: Settings, monkeypatch: pytest.MonkeyPatch, held: dict[str, Any]
) -> None:
    monkeypatch.setattr(backlog, "FRESH_SECONDS", 0.0)
    settings.BACKLOG_HIGH_WATER = 2
    ingest.receive(install, body(*[message()] * 10))
    assert is_later(send(install, body(message())))
    Lane.objects.update(**held.get("lane", {"delivered_sequence": 0}))
    Audience.objects.update(**held.get("audience", {"provisioned_at": now()}))
    assert backlog.of(install.pk) == 0
    assert backlog.room(install.pk, None)[0] == 1
    assert counts(send(install, body(message())))[1] == 1


def test_a_rejection_is_logged_once_and_again_after_calls_were_accepted(
    install: Install, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    monkeypatch.setattr(views, "_rejected_at", {})
    monkeypatch.setattr(views.log, "warning", lambda words, **more: told.append((words, *more.values())))
    settings.BACKLOG_HIGH_WATER = -1
    monkeypatch.setattr(backlog, "FRESH_SECONDS", 0.0)
    for _ in range(3):
        assert is_later(send(install, body(message())))
    Install.objects.update(enabled=False)
    for _ in range(3):
        assert is_later(send(install, body(message())))
    reasons_told = ["Too many events wait for ODP.", "This install is switched off."]
    assert told == [("calls are answered 503", "Shop", reason) for reason in reasons_told]
    monkeypatch.setattr(views, "OUTAGE_ENDS_SECONDS", 0.0)
    send(install, body(message()))
    assert len(told) == 3


def test_the_backlog_is_not_summed_up_for_every_call(install: Install) -> None:
    for queries in (1, 0):
        with CaptureQueriesContext(connection) as summed:
            backlog.is_too_high(install.pk)
        assert len(summed) == queries


def test_a_database_over_its_mark_asks_to_come_back_until_it_is_below(
    install: Install, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_usage, "FRESH_SECONDS", 0.0)
    settings.DATABASE_HIGH_WATER_BYTES = disk_usage.used() - 1
    answer = send(install, body(message()))
    assert is_later(answer)
    assert json.loads(getattr(answer, "content", b"")) == {"detail": "The database is as large as it may get."}
    assert nothing_is_stored()
    settings.DATABASE_HIGH_WATER_BYTES = disk_usage.used() * 2
    assert counts(send(install, body(message())))[1] == 1


def test_the_size_of_the_database_is_not_read_for_every_call_and_never_without_a_mark(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_usage, "_read", None)
    for mark, queries in ((0, 0), (1 << 50, 1), (1 << 50, 0)):
        settings.DATABASE_HIGH_WATER_BYTES = mark
        with CaptureQueriesContext(connection) as asked:
            assert not disk_usage.is_too_full()
        assert len(asked) == queries


def test_a_body_over_the_limit_asks_to_come_back(install: Install, settings: Settings) -> None:
    settings.WEBHOOK_BODY_LIMIT = 1000
    assert counts(send(install, body(message()).ljust(1000)))[1] == 1  # JSON may end in blanks
    assert is_later(send(install, body(message()).ljust(1001)))
    assert is_later(send(install, b"x" * 5000))
    assert Receipt.objects.count() == 1


@pytest.mark.parametrize("public_id", ["", "nobody"])
def test_an_endless_body_is_read_within_a_bound(install: Install, settings: Settings, public_id: str) -> None:
    """The rest of a body is read so that the caller sees the response. The caller may be anybody."""
    settings.WEBHOOK_BODY_LIMIT = 1000
    install.public_id = public_id or install.public_id
    sizes: list[int] = []

    class Endless(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            assert size is not None
            sizes.append(size)
            return b" " * size if len(sizes) < 100 else b""

    chunked: dict[str, Any] = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input": Endless()}
    answer = send(install, b"", **chunked)
    assert answer.status_code == (401 if public_id else 503)
    assert sizes == ([] if public_id else [1001]) + [1 << 16]


def test_a_body_over_the_limit_when_unpacked_asks_to_come_back(install: Install, settings: Settings) -> None:
    settings.WEBHOOK_BODY_LIMIT = 1000
    filled = body(message()).ljust(1000)
    for content in (gzip.compress(filled), gzip.compress(filled[:500]) + gzip.compress(filled[500:])):
        assert counts(send(install, content))[1] == 1
    for content in (
        gzip.compress(filled + b" "),
        gzip.compress(filled) + gzip.compress(b" "),
        gzip.compress(b" " * 10**8),
    ):
        assert is_later(send(install, content[:1000]))
    assert Receipt.objects.count() == 2


def test_a_call_that_can_not_be_stored_asks_to_come_back(install: Install) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'disk full'; END $$;"
            "CREATE TRIGGER full_disk BEFORE INSERT ON audiences_event FOR EACH ROW EXECUTE FUNCTION full_disk()"
        )
    assert is_later(send(install, body(message())))
    assert nothing_is_stored()
    assert counts(send(install, b"[]"))[1] == 0


def test_an_unexpected_error_is_answered_503_too(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RecursionError

    monkeypatch.setattr(ingest, "receive", fail)
    assert is_later(send(install, body(message())))


def test_a_host_name_that_is_not_set_up_asks_to_come_back_and_is_no_400(install: Install) -> None:
    assert is_later(send(install, body(message()), HTTP_HOST="sync.example.com"))
    assert Client().get("/admin/", HTTP_HOST="sync.example.com").status_code == 400


# --- Through gunicorn, over real connections ------------------------------------------------------------------


web = web_of_a_module()


def post(web: Web, install: Install, content: Any, **headers: str) -> Any:
    return web.call("POST", url(install), content, Authorization=f"Bearer {secret(install)}", **headers)


def head(install: Install, *lines: str) -> bytes:
    all_lines = [
        f"POST {url(install)} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Authorization: {secret(install)}",
        *lines,
        "",
        "",
    ]
    return "\r\n".join(all_lines).encode()


CHUNKED = {"Transfer_Encoding": "chunked"}


@real
def test_a_call_through_gunicorn_is_stored_before_it_is_answered(web: Web, install: Install) -> None:
    answer = post(web, install, body(message()))
    assert (answer.status, json.loads(answer.read())["queued"]) == (200, 1)
    assert log(install) == [("lytics_gold_club", "kim", ENTER)]
    assert Receipt.objects.get().source == "127.0.0.1"


@real
def test_a_chunked_body_is_read_to_its_end(web: Web, install: Install) -> None:
    content = body(*(message(who=f"c{number}") for number in range(500)))
    pieces = [content[start : start + 7001] for start in range(0, len(content), 7001)]
    assert json.loads(post(web, install, iter(pieces), **CHUNKED).read())["queued"] == 500
    packed = post(web, install, iter([gzip.compress(content)]), Content_Encoding="gzip", **CHUNKED)
    assert json.loads(packed.read())["queued"] == 500


@real
def test_a_slash_too_many_before_the_path_is_401_and_not_404(web: Web, install: Install) -> None:
    assert web.call("POST", "/" + url(install), b"[]", Authorization=secret(install)).status == 401


@real
def test_connections_are_kept_over_good_and_bad_answers(web: Web, install: Install) -> None:
    caller = web.http()
    for authorization, status in ((secret(install), 200), ("wrong", 401), (secret(install), 200)):
        caller.request("POST", url(install), body(message()), {"Authorization": authorization})
        sock = caller.sock
        answer = caller.getresponse()
        answer.read()
        assert (answer.status, caller.sock) == (status, sock)
    caller.close()


@real
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("authorized", [False, True])
def test_a_response_reaches_a_caller_that_is_still_sending(
    web: Web, install: Install, chunked: bool, authorized: bool
) -> None:
    """Closing a connection with unread data resets it, and the client loses the response with its Retry-After."""
    size, piece = 4 * Web.BODY_LIMIT, b" " * 250_000
    content: Any = iter([piece] * (size // len(piece))) if chunked else b" " * size
    headers = {"Authorization": secret(install) if authorized else "wrong", **(CHUNKED if chunked else {})}
    answer = web.call("POST", url(install), content, **headers)
    assert answer.status == (503 if authorized else 401)
    assert answer.headers.get("Retry-After") == ("17" if authorized else None)
    assert nothing_is_stored()


@real
def test_the_body_of_a_rate_limited_caller_is_not_read(web: Web, install: Install) -> None:
    """The response comes at once to a client that has sent nothing of the announced body."""
    address = "203.0.113.9"
    lines = (f"X-Forwarded-For: {address}", "Content-Length: 100000000")

    def announce() -> bytes:
        in_a_row = 0
        while in_a_row < 12:
            knock = web.call("POST", url(install), b"[]", Authorization="wrong", X_Forwarded_For=address)
            in_a_row = in_a_row + 1 if knock.status == 429 else 0
        with web.raw() as caller:
            caller.sendall(head(install, *lines).replace(secret(install).encode(), b"wrong"))
            return caller.recv(65536)

    # Each of two processes has its own count, which restarts every minute.
    assert any(announce().startswith(b"HTTP/1.1 429 ") for _ in range(5))
    assert post(web, install, body(message()), X_Forwarded_For=address).status == 200
    assert Receipt.objects.get().source == address


@real
@pytest.mark.parametrize("lines", [["Content-Length: 5000"], ["Transfer-Encoding: chunked"]])
def test_a_caller_that_disconnects_in_the_middle_stores_nothing(web: Web, install: Install, lines: list[str]) -> None:
    content = body(message()) if "Content" in lines[0] else b"%x\r\n%s\r\n" % (len(body(message())), body(message()))
    with web.raw() as caller:
        caller.sendall(head(install, *lines) + content)
        caller.shutdown(socket.SHUT_WR)
        answer = caller.recv(65536)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert nothing_is_stored()


@real
def test_chunks_that_make_no_sense_are_503_and_leave_nothing(web: Web, install: Install) -> None:
    with web.raw() as caller:
        caller.sendall(head(install, "Transfer-Encoding: chunked") + b"zz\r\n[]\r\n0\r\n\r\n")
        assert caller.recv(65536).startswith(b"HTTP/1.1 503 ")
    assert nothing_is_stored()


@real
def test_expect_100_continue_is_answered(web: Web, install: Install) -> None:
    content = body(message())
    with web.raw() as caller:
        caller.sendall(head(install, f"Content-Length: {len(content)}", "Expect: 100-continue"))
        assert caller.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        caller.sendall(content)
        assert caller.recv(65536).startswith(b"HTTP/1.1 200 ")


@real
def test_calls_get_503_while_the_database_is_down_and_are_accepted_afterwards(web: Web, install: Install) -> None:
    assert post(web, install, body(message())).status == 200
    with web.database.cut():
        for _ in range(3):
            answer = post(web, install, body(message()))
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert web.call("GET", "/health/live").status == 200
        assert web.call("GET", "/health/ready").status == 503
    assert post(web, install, body(message())).status == 200
    assert len(log(install)) == 2


@real
def test_a_database_that_was_started_again_between_two_calls_costs_none_of_them(web: Web, install: Install) -> None:
    def status() -> int:
        return int(post(web, install, body(message())).status)

    assert status() == 200  # callers who name a new audience wait for one another, and some in vain
    assert together(*[status] * 20) == [200] * 20  # now many threads hold a connection
    with web.database.cut():
        pass
    assert [status() for _ in range(20)] == [200] * 20


@real
@pytest.mark.parametrize("fault", ["frozen", "cut"])
def test_a_broker_that_is_frozen_or_gone_neither_fails_nor_delays_an_answer(
    web: Web, install: Install, fault: str
) -> None:
    with getattr(web.broker, fault)():
        started = time.monotonic()
        answers = [post(web, install, body(message())).status for _ in range(20)]
        assert time.monotonic() - started < 35  # waiting for the broker takes two seconds a call at least
    assert answers == [200] * 20
    assert len(log(install)) == 20


@real
def test_a_call_wakes_the_workers(web: Web, install: Install) -> None:
    from audiences.wake import _pending, _redis

    server = _redis()
    server.delete(_pending(install.pk))
    assert post(web, install, body(message())).status == 200
    assert eventually(lambda: server.exists(_pending(install.pk)))
