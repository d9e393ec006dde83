"""One webhook body becomes facts, and parked items with their reasons. No database."""

import bz2
import gzip
import json
import lzma
import re
import time
import zlib
from collections import Counter
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from lytics import bodies, common_messages, facts, json_pieces, messages, payload, reasons, times
from lytics.facts import Fact, Kind, Reading
from lytics.payload import parse
from tests.messages import AT, AT_NS, SECOND, body, message, single, transition

RECEIVED_NS = AT_NS + 60 * SECOND


def read(raw: bytes, *, field: str = "_id", **options: Any) -> Reading:
    return parse(raw, identifier_field=field, received_ns=RECEIVED_NS, **options)


def why(reading: Reading) -> list[str]:
    return [item.reason for item in reading.to_park]


def reading_of(*some: Fact, job: str) -> Reading:
    reading = Reading(messages=len(some), job=job)
    reading.facts.extend(some)
    return reading


def fact(
    who: str = "kim", kind: Kind = Kind.ENTER, *, segment: str = "s1", slug: str = "gold_club", at: int = AT_NS
) -> Fact:
    return Fact(segment, slug, who, kind, at)


# --- Every layout in which messages come ------------------------------------------------------------------------


def test_it_reads_a_single_enter_to_the_nanosecond() -> None:
    reading = read(single(message(transition(at="2026-03-02T09:15:00.123456789Z"))))
    assert reading == reading_of(fact(at=AT_NS + 123_456_789), job="job-7")


def test_an_exit_with_the_same_message_id_is_another_fact() -> None:
    enter = message(transition())
    leave = message(transition("exit", at="2026-03-03T01:15:00.5-07:00"))
    assert enter["id"] == leave["id"]
    later = AT_NS + 23 * 3600 * SECOND + SECOND // 2
    assert read(body(enter, leave)).facts == [fact(), fact(kind=Kind.EXIT, at=later)]


def test_it_keeps_good_messages_of_a_batch_when_one_is_bad() -> None:
    other = message(transition("exit", segment="s2", slug="basket"), who="lee", meta={"subscription_id": "job-8"})
    reading = read(body(message(), other, "oops"))
    assert reading.facts == [fact(), fact("lee", Kind.EXIT, segment="s2", slug="basket")]
    assert (reading.messages, reading.job) == (3, "job-7")
    assert [(item.reason, item.raw) for item in reading.to_park] == [(reasons.NOT_A_MESSAGE, b'"oops"')]


def test_several_segment_events_in_one_message_are_all_read() -> None:
    leave = transition("exit", enter="2026-02-01T00:00:00Z")
    enter = transition("enter", segment="s2", slug="comeback", exit="2099-03-02T09:15:00Z")
    one = message(leave, enter)
    del one["id"]
    assert read(single(one)).facts == [fact(kind=Kind.EXIT), fact(segment="s2", slug="comeback")]


def cloud_event(**more: Any) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": "88",
        "source": "/work/job-7",
        "type": "com.lytics.audience.user.event",
        "datacontenttype": "application/json",
        "time": "2026-03-02T09:15:04.5Z",
        "data": message()["data"],
        **more,
    }


def test_it_reads_a_cloud_event() -> None:
    assert read(single(cloud_event())) == reading_of(fact(), job="/work/job-7")


@pytest.mark.parametrize("number", [2, 8])
def test_it_reads_cloud_events_in_an_array(number: int) -> None:
    reading = read(body(*[cloud_event()] * number))
    assert (reading.messages, reading.facts, reading.job) == (number, [fact()] * number, "/work/job-7")


def test_a_cloud_event_without_a_transition_time_takes_its_own() -> None:
    event = cloud_event(data=message(transition("change"))["data"])
    assert read(single(event)).facts == [fact(kind=Kind.CHANGE, at=AT_NS + 4_500_000_000)]


@pytest.mark.parametrize("name", ["events", "data"])
def test_an_object_that_wraps_a_list_is_unwrapped(name: str) -> None:
    reading = read(single({name: [message(), message(who="lee"), 7]}))
    assert (reading.messages, reading.facts, why(reading)) == (3, [fact(), fact("lee")], [reasons.NOT_A_MESSAGE])


def test_an_object_that_wraps_two_lists_loses_neither() -> None:
    reading = read(single({"events": [message()], "data": [message(who="lee")]}))
    assert reading.facts == [fact(), fact("lee")]


def test_a_message_with_a_stray_list_beside_its_data_is_one_message() -> None:
    assert read(single(message(events=[1, 2]))).facts == [fact()]


def test_a_message_of_a_batch_whose_data_is_a_list_is_parked_whole() -> None:
    reading = read(body(message(), {"data": [message(who="lee")]}))
    assert (reading.facts, why(reading)) == ([fact()], [reasons.UNREADABLE_MESSAGE])


def test_an_empty_batch_holds_nothing() -> None:
    assert read(b" [ ]\n") == Reading()


@pytest.mark.parametrize(
    "encoded",
    [
        b"\xef\xbb\xbf" + single(message(who="zoë")),
        single(message(who="zoë")).decode().encode("utf-16"),
        b"\xfe\xff" + single(message(who="zoë")).decode().encode("utf-16-be"),
        b"\xef\xbb\xbf" + body(message(who="zoë")),
        b"\xef\xbb\xbf" * 2 + body(message(who="zoë")),
        b"\n\xef\xbb\xbf " + single(message(who="zoë")),
        *(single(message(who="zoë")).decode().encode(name) for name in ("utf-32", "utf-16-le", "utf-16-be")),
        *(body(message(who="zoë")).decode().encode(name) for name in ("utf-32-le", "utf-32-be")),
    ],
)
def test_a_body_in_any_encoding_of_unicode_is_read(encoded: bytes) -> None:
    reading = read(encoded)
    assert (reading.messages, reading.facts) == (1, [fact("zoë")])


def test_each_of_several_documents_may_have_a_byte_order_mark() -> None:
    reading = read(b"\n".join(b"\xef\xbb\xbf" + single(message(who=who)) for who in ("kim", "lee")))
    assert (reading.facts, reading.to_park) == ([fact(), fact("lee")], [])


def test_half_an_emoji_in_an_unused_field_of_a_utf_16_body_costs_nothing() -> None:
    raw = single(message()).replace(b'"data"', '"x": "ë", "data"'.encode(), 1).decode().encode("utf-16")
    assert read(raw.replace("ë".encode("utf-16-le"), b"\x3d\xd8")).facts == [fact()]


def test_half_an_emoji_in_an_identifier_of_a_utf_16_body_is_not_replaced() -> None:
    raw = single(message(who="zoë")).decode().encode("utf-16")
    reading = read(raw.replace("ë".encode("utf-16-le"), b"\x3d\xd8"))
    assert (reading.facts, why(reading)) == ([], [reasons.UNREADABLE_IDENTIFIER])


# --- Not a message ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"   ",
        b"segment=gold_club&user=kim",
        b"<xml/>",
        b"\xff\xfea\xd8b\x00",
    ],
)
def test_a_body_that_is_not_json_is_parked_as_one_item(raw: bytes) -> None:
    reading = read(raw)
    assert (reading.messages, reading.facts) == (1, [])
    assert [(item.reason, item.raw) for item in reading.to_park] == [(reasons.NOT_JSON, raw)]


@pytest.mark.parametrize(
    "raw",
    [
        b'{"data": {"_id": "kim"',
        body(message())[:-30],
        single(message())[:-1],
        b'["' + b'\\"' * 50,
        b"[",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_a_body_without_its_last_bracket_is_parked_as_cut_off(raw: bytes) -> None:
    reading = read(raw)
    assert (reading.messages, reading.facts) == (1, [])
    assert [(item.reason, item.raw) for item in reading.to_park] == [(reasons.CUT_OFF_BODY, raw)]


# What may come before the first message of a body that is cut off.
BEFORE = (b"[", b' {"events": [', b'{"version": {"events": [1, 2]}, "events" : null, "data": [', b'{"data":[')


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("flaw", [b"", b'"x": undefined, '])
@pytest.mark.parametrize(
    ("between", "rest"),
    [
        (b", ", single(message(who="lee"))[:-30]),
        (b",", b'{"data": {"x": "a"b"}}]'),
        (b",\n", b"x"),
        (b",", b""),
        (b"", b""),
    ],
)
def test_the_messages_before_the_cut_of_an_array_are_read(
    before: bytes, flaw: bytes, between: bytes, rest: bytes
) -> None:
    first = single(message()).replace(b'"data"', flaw + b'"data"', 1)
    reading = read(before + first + between + rest)
    assert (reading.messages, reading.facts) == (2, [fact()])
    assert [(item.reason, item.raw) for item in reading.to_park] == [(reasons.CUT_OFF_BODY, rest)]


@pytest.mark.parametrize(("rest", "parked"), [(b"]", b""), (b'], "page": {"of"', b', "page": {"of"')])
def test_the_messages_of_a_wrapper_that_is_cut_off_behind_them_are_read(rest: bytes, parked: bytes) -> None:
    reading = read(b'{"events": [' + single(message()) + rest)
    assert (reading.messages, reading.facts) == (2, [fact()])
    assert [(item.reason, item.raw) for item in reading.to_park] == [(reasons.CUT_OFF_BODY, parked)]


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"\x1f\x8b\x08 broken", "gzip"),
        (gzip.compress(body(message()))[:-9], "gzip"),
        *((zlib.compress(body(message()), level)[:-9], "deflate") for level in (0, 3, 6, 9)),
        (b"\x28\xb5\x2f\xfd\x00\x01", "zstd"),
        (bz2.compress(body(message())), "bzip2"),
        (lzma.compress(body(message())), "xz"),
        (b"PK\x03\x04\x14\x00", "zip"),
    ],
)
def test_a_compressed_body_is_parked_as_compressed(raw: bytes, name: str) -> None:
    reading = read(raw)
    assert [(item.reason, item.raw) for item in reading.to_park] == [(reasons.PACKED_BODY, raw)]
    assert name in reading.to_park[0].detail


@pytest.mark.parametrize(
    ("raw", "reason"),
    [(b"\x0b\x0a", reasons.PACKED_BODY), ('[{"data":{"_id":"zoë'.encode()[:-1], reasons.CUT_OFF_BODY)],
)
def test_an_item_keeps_its_bytes_whatever_its_content_encoding(raw: bytes, reason: str) -> None:
    (item,) = bodies.name_encoding(read(raw), "br").to_park
    assert (item.reason, item.raw) == (reason, raw)


@pytest.mark.parametrize("between", [b"", b"\n", b" \r\n", b","])
@pytest.mark.parametrize("flaw", [b"", b'"x": NaN, ', b'"x": undefined, '])
def test_json_documents_one_after_another_are_all_read(between: bytes, flaw: bytes) -> None:
    first, other = single(message()).replace(b'"data"', flaw + b'"data"', 1), single(message(who="lee"))
    for one, two in (
        (first, other),
        (b"[" + first + b"]", b"[" + other + b"]"),
        (b'{"events": [' + first + b"]}", other),
    ):
        reading = read(one + between + two)
        assert (reading.messages, reading.facts, reading.to_park) == (2, [fact(), fact("lee")], [])


@pytest.mark.parametrize("rest", [b"x", b"]", b"}", b"]]}", b"x" + single(message(who="lee")), single(message())[:-9]])
@pytest.mark.parametrize("flaw", [b"", b'"x": NaN, '])
def test_text_behind_the_json_is_parked_and_the_json_is_read(rest: bytes, flaw: bytes) -> None:
    one = single(message()).replace(b'"data"', flaw + b'"data"', 1)
    for whole in (one, b"[" + one + b"]", b'{"data": [' + one + b"]}"):
        reading = read(whole + rest)
        assert (reading.messages, reading.facts) == (2, [fact()])
        assert [(item.reason, item.raw) for item in reading.to_park] == [(reasons.TEXT_AFTER_JSON, rest)]


def test_a_bracket_too_many_between_messages_costs_neither() -> None:
    reading = read(b"[" + single(message()) + b"}," + single(message(who="lee")) + b"]")
    assert (reading.messages, reading.facts) == (3, [fact(), fact("lee")])
    assert [(item.reason, item.raw) for item in reading.to_park] == [(reasons.TEXT_AFTER_JSON, b"]")]
    reading = read(single(message()) + b"}" + single(message(who="lee")) + b"x")
    assert (reading.facts, reading.to_park[0].raw) == ([fact(), fact("lee")], b"}x")


@pytest.mark.parametrize(
    "raw", [b"{{user.name}} entered", b"[a link](to/somewhere)", b"{} x", b"[][]", b"[1] [2]", b"{a} {b}"]
)
def test_brackets_without_a_message_are_no_json(raw: bytes) -> None:
    assert [(item.reason, item.raw) for item in read(raw).to_park] == [(reasons.NOT_JSON, raw)]


def test_a_wrapped_list_with_text_behind_it_is_parked_whole() -> None:
    raw = b'{"events": ' + body(message()) + b" 5}"
    assert [(item.reason, item.raw) for item in read(raw).to_park] == [(reasons.UNREADABLE_MESSAGE, raw)]


def test_several_documents_share_the_message_limit_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MESSAGES_AT_MOST", 3)
    assert read(single(message()) + body(message(), message())).messages == 3
    whole = single(message())
    for raw in (whole * 4, b"[]" * 4, b"{}" * 4, whole + b"[]}" * 3, body(message(), message()) * 2):
        assert why(read(raw)) == [reasons.TOO_MANY_MESSAGES]


def test_invalid_utf_16_is_parked_and_not_replaced() -> None:
    reading = read(single(message(who="zoë")).decode().encode("utf-16").replace("ë".encode("utf-16-le"), b"\x00\xd8"))
    assert (reading.facts, why(reading)) == ([], [reasons.UNREADABLE_IDENTIFIER])


@pytest.mark.parametrize("raw", [b"null", b"true", b"12", b'"text"', b" -1.5e3 "])
def test_json_that_is_no_object_is_no_message(raw: bytes) -> None:
    reading = read(raw)
    assert (reading.messages, reading.facts, why(reading)) == (1, [], [reasons.NOT_A_MESSAGE])


@pytest.mark.parametrize(
    ("raw", "messages"),
    [(b"[,]", 1), (b"[1,,2]", 3), (b"[null,]", 1), (b"[{},[],nope]", 3), (b"[  tru  ]", 1), (b"[}", 1)],
)
def test_every_element_of_a_broken_array_is_accounted_for(raw: bytes, messages: int) -> None:
    reading = read(raw)
    assert (reading.messages, len(reading.to_park), reading.facts) == (messages, messages, [])


def test_a_malformed_element_does_not_affect_its_neighbours() -> None:
    good, other = (
        single(message()),
        single(
            message(
                who='l]e},e{["',
            )
        ),
    )
    reading = read(b"[" + good + b', {"data": {"_id": }},' + other + b"]")
    assert reading.facts == [fact(), fact('l]e},e{["')]
    assert [(item.reason, item.raw) for item in reading.to_park] == [
        (reasons.NO_SEGMENT_EVENTS, b'{"data": {"_id": }}')
    ]


FLAWS = [
    b"Infinity",
    b"-Infinity",
    b"NaN",
    b"01",
    b"1e999999",
    b"9" * 5000,
    b"'x'",
    b"",
    b"undefined",
    b'"\t\n\x00"',
    b'"cut emoji \\ud83d"',
    b'"low half \\udc00 first"',
    b'"\\x41"',
    b'"Zo\xeb"',
    b'"\xf0\x9f"',
    b"[" * 9000 + b"]" * 9000,
    b'{"a":' * 9000 + b"1" + b"}" * 9000,
    b'{"a" 1}',
    b"[1,]",
    b"/* a comment */ 1",
]
PLACES = {
    "beside data": (b'"meta"', b'"x": %s, "meta"'),
    "in data": (b'"_id"', b'"x": %s, "_id"'),
    "in meta": (b'"object"', b'"x": %s, "object"'),
    "in the segment event": (b'"slug"', b'"x": %s, "slug"'),
    "in place of the job": (b'"job-7"', b"%s"),
}


@pytest.mark.parametrize("flaw", FLAWS, ids=lambda flaw: flaw[:20].decode("latin-1"))
def test_a_flaw_in_an_unused_field_parks_nothing(flaw: bytes) -> None:
    for (old, new), field in product(PLACES.values(), ("_id", "user_id")):
        reads_despite_a_flaw(flaw, old, new, field)


def reads_despite_a_flaw(flaw: bytes, old: bytes, new: bytes, field: str) -> None:
    whole = single(message(field=field))
    raw = whole.replace(old.replace(b"_id", field.encode()), new.replace(b"_id", field.encode()) % flaw, 1)
    assert raw != whole
    good = single(message(who="lee", field=field))
    for reading in (read(raw, field=field), read(b'{"events": [' + raw + b"]}", field=field)):
        assert (reading.messages, reading.facts, reading.to_park) == (1, [fact()], [])
    beside = read(b"[" + good + b"," + raw + b"," + good + b"]", field=field)
    assert (beside.messages, beside.facts, beside.to_park) == (3, [fact("lee"), fact(), fact("lee")], [])


@pytest.mark.parametrize("flaw", [b"NaN", b"undefined"])
@pytest.mark.parametrize(
    ("field", "one"),
    [
        ("_id", cloud_event(data=message(transition("change"))["data"])),
        ("uids", cloud_event(data={**message(field="uids", who=["kim", "lee"])["data"], "_id": "p9"})),
        ("email", message()),
    ],
)
def test_a_message_with_a_flaw_is_read_like_one_without(field: str, one: dict[str, Any], flaw: bytes) -> None:
    raw = json.dumps(one, separators=(" , ", " : ")).encode()
    sound = read(raw.replace(b'"data" : {', b'"data" : {"x": 1, '), field=field)
    flawed = read(raw.replace(b'"data" : {', b'"data" : {"x": ' + flaw + b", "), field=field)
    assert (flawed.facts, flawed.job) == (sound.facts, sound.job)
    assert [item[:2] for item in flawed.to_park] == [item[:2] for item in sound.to_park]


def test_a_flaw_in_a_field_name_affects_only_that_field() -> None:
    raw = single(message()).replace(b'"_id"', b'"\\ud83d": 1, "\xff": 2, "\\\n": 3, "_id"', 1)
    assert read(raw).facts == read(b"[" + raw + b"]").facts == [fact()]
    assert why(read(raw, field="email")) == [reasons.NO_IDENTIFIER]


def test_a_message_with_a_deeply_nested_field_is_read() -> None:
    deep = b'{"x": ' + b"[" * 50_000 + b"]" * 50_000 + b"," + single(message(who="deep"))[1:]
    reading = read(b"[" + single(message()) + b"," + deep + b"," + single(message(who="lee")) + b"]")
    assert (reading.facts, reading.to_park) == ([fact(), fact("deep"), fact("lee")], [])


@pytest.mark.parametrize(
    "raw",
    [
        *(b'{"data" {"_id": "kim"}}', b'{"data": {"_id": "kim"]}', b'{data: {"_id": "kim"}}', b'{"data": 1 2}'),
        single(message()).replace(b'"data": {', b'"data": {"x" 1, '),
        single(message()).replace(b'"kim"', b'["kim"] 1'),
        single(message()).replace(b"}]", b"}] 1"),
    ],
)
def test_a_message_whose_parts_do_not_fit_is_the_same_alone_and_in_a_batch(raw: bytes) -> None:
    for reading in (read(raw), read(b"[" + raw + b"]")):
        assert (reading.messages, reading.facts) == (1, [])
        assert [item.raw for item in reading.to_park] == [raw]


@pytest.mark.parametrize("data", [None, 5, "text", True])
def test_a_message_without_data_is_unreadable(data: Any) -> None:
    assert why(read(single({**message(), "data": data}))) == [reasons.UNREADABLE_MESSAGE]
    assert why(read(body({"meta": {"object": "user"}}))) == [reasons.UNREADABLE_MESSAGE]


# --- Wrong jobs and wrong set-up -----------------------------------------------------------------------------


def test_a_message_of_a_stream_job_is_parked_as_such() -> None:
    stream = {"id": "7", "data": {"email": "kim@example.com"}, "meta": {"object": "event", "subscription_id": "web"}}
    reading = read(single(stream))
    assert [(item.reason, item.detail) for item in reading.to_park] == [
        (reasons.NOT_A_USER_EVENT, "meta.object is 'event'")
    ]


def test_a_message_of_a_stream_job_is_parked_as_such_even_with_malformed_meta() -> None:
    stream = message(meta={"object": "event", "timestamp": 1_772_442_900, "subscription_id": ["web"]})
    for one in (stream, {**stream, "data": "no object"}):
        reading = read(single(one))
        assert (reading.facts, why(reading)) == ([], [reasons.NOT_A_USER_EVENT])


@pytest.mark.parametrize("meta", [{}, {"object": None}, {"object": "user"}, "text", None, [1]])
def test_a_message_without_an_origin_is_taken_for_an_audience_trigger(meta: Any) -> None:
    assert read(single({**message(), "meta": meta})).facts == [fact()]


@pytest.mark.parametrize("events", [[], None])
def test_missing_segment_events_are_parked_with_the_fields_seen(events: Any) -> None:
    one = message()
    one["data"] = {"_id": "kim", "email": "kim@example.com", "segment_events": events}
    if events is None:
        del one["data"]["segment_events"]
    reading = read(single(one))
    assert why(reading) == [reasons.NO_SEGMENT_EVENTS]
    assert ("email" if events is None else "is empty") in reading.to_park[0].detail
    assert "kim@example.com" not in reading.to_park[0].detail
    assert {"Export Fields", "is empty"} <= set(re.findall("Export Fields|is empty", reasons.HINTS[why(reading)[0]]))


def test_of_many_fields_the_first_twenty_are_named() -> None:
    one = {"data": {f"field_{number:02}": 1 for number in range(21)}}
    (parked,) = read(single(one)).to_park
    assert parked.detail.endswith("field_18, field_19, …")


def test_missing_segment_events_are_reported_in_a_malformed_message_too() -> None:
    one = {"data": {"_id": "kim", "segment_events": None}, "meta": "odd"}
    assert why(read(single(one))) == [reasons.NO_SEGMENT_EVENTS]


def test_segment_events_that_are_no_list_are_not_called_missing() -> None:
    one = message()
    one["data"]["segment_events"] = transition()
    reading = read(single(one))
    assert [(item.reason, item.detail) for item in reading.to_park] == [
        (reasons.UNREADABLE_MESSAGE, "segment_events is not a list")
    ]


def test_only_malformed_segment_events_are_parked_as_one_item() -> None:
    reading = read(single(message(transition(segment={}), transition(segment=["x"]))))
    assert [(item.reason, item.detail) for item in reading.to_park] == [
        (reasons.UNREADABLE_MESSAGE, "the id of a segment event is an object (and 1 more)")
    ]


@pytest.mark.parametrize(
    ("odd", "reason", "detail"),
    [
        ({"event": 1}, reasons.UNKNOWN_EVENT, "the event is a number"),
        ({"event": ["enter"]}, reasons.UNKNOWN_EVENT, "the event is a list"),
        ({"event": "\ud800"}, reasons.UNKNOWN_EVENT, "the event is a text with half a character"),
        ({"event": None}, reasons.UNKNOWN_EVENT, "the event is missing"),
        ({"event": None, "slug": True}, reasons.UNKNOWN_EVENT, "the event is missing"),
        ({"id": 7.5}, reasons.UNREADABLE_MESSAGE, "the id of a segment event is a number"),
        ({"id": " ", "slug": True}, reasons.NO_AUDIENCE, "the slug is true"),
        ({"id": None, "slug": {}}, reasons.NO_AUDIENCE, "the slug is an object"),
        ({"id": None, "slug": None}, reasons.NO_AUDIENCE, ""),
        ({"id": None, "slug": None, "enter": []}, reasons.NO_AUDIENCE, ""),
    ],
)
def test_a_name_of_another_type_is_not_called_missing(odd: dict[str, Any], reason: str, detail: str) -> None:
    reading = read(json.dumps(message(transition() | odd)).encode())
    assert [(item.reason, item.detail) for item in reading.to_park] == [(reason, detail)]


@pytest.mark.parametrize("kind", ["User", " user ", "", " "])
def test_the_object_of_a_message_is_compared_without_case_and_blanks(kind: str) -> None:
    one = message()
    one["meta"]["object"] = kind
    assert read(single(one)).facts == [fact()]


def test_a_malformed_segment_event_does_not_take_its_neighbours() -> None:
    reading = read(single(message(transition(), transition(segment=1.5), transition(segment="s2", slug="basket"))))
    assert reading.facts == [fact(), fact(segment="s2", slug="basket")]
    assert why(reading) == [reasons.UNREADABLE_MESSAGE]


def test_every_reason_has_a_hint() -> None:
    codes = {value for name, value in vars(reasons).items() if name.isupper() and isinstance(value, str)}
    assert codes == set(reasons.HINTS)


# --- Transitions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("enter", Kind.ENTER),
        (" Enter ", Kind.ENTER),
        ("ENTERED", Kind.ENTER),
        ("exit", Kind.EXIT),
        ("exited", Kind.EXIT),
        ("eXiT\t", Kind.EXIT),
        ("change", Kind.CHANGE),
        ("Changed", Kind.CHANGE),
    ],
)
def test_event_names_ignore_case_and_blanks(word: str, kind: Kind) -> None:
    assert [one.kind for one in read(single(message(transition(word)))).facts] == [kind]


@pytest.mark.parametrize("word", ["paused", "", None, "enterexit"])
def test_an_unknown_event_name_is_parked(word: str | None) -> None:
    event = {"id": "s1", "slug": "gold_club", "event": word}
    reading = read(body(message(event), message(who="lee")))
    assert (reading.facts, why(reading)) == ([fact("lee")], [reasons.UNKNOWN_EVENT])


def test_an_enter_ignores_its_scheduled_exit() -> None:
    assert read(single(message(transition(exit="not a time at all")))).facts == [fact()]


def test_an_exit_ignores_its_enter() -> None:
    assert read(single(message(transition("exit", enter="2099-01-01T00:00:00Z")))).facts == [fact(kind=Kind.EXIT)]


def test_a_change_takes_the_time_of_its_message_even_if_it_carries_an_enter() -> None:
    change = transition("change", enter="2020-01-01T00:00:00Z", exit="2099-01-01T00:00:00Z")
    assert read(single(message(change))).facts == [fact(kind=Kind.CHANGE, at=AT_NS + 4_250_000_000)]


@pytest.mark.parametrize(
    "missing",
    [
        None,
        "",
        "  ",
        "0001-01-01T00:00:00Z",
        "1970-01-01T00:00:00Z",
        "1970-01-01T00:00:00.0Z",
        "1969-12-31T17:00:00-07:00",
        "1970-01-01T00:00:00+01:00",
        "1969-12-31T16:00:00.000Z",
        "1899-12-30T00:00:00Z",
        "1999-12-31T23:59:59.999Z",
        "1601-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "0000-00-00 00:00:00",
        "0001-01-01 00:00:00 +0000 UTC",
    ],
)
def test_a_transition_without_a_time_uses_the_time_of_its_message(missing: str | None) -> None:
    one = message(transition(at=missing))
    assert read(single(one)).facts == read(body(one)).facts == [fact(at=AT_NS + 4_250_000_000)]


def test_an_exit_with_only_an_enter_time_uses_the_time_of_its_message() -> None:
    event = {"id": "s1", "event": "exit", "slug": "gold_club", "enter": "2026-02-01T00:00:00Z"}
    assert read(single(message(event))).facts == [fact(kind=Kind.EXIT, at=AT_NS + 4_250_000_000)]


def test_a_transition_without_any_time_uses_the_time_of_the_call() -> None:
    assert read(single(message(transition(at=None), meta={"object": "user"}))).facts == [fact(at=RECEIVED_NS)]


def test_meta_timestamp_takes_precedence_over_cloud_event_time() -> None:
    both = message(transition("change"), time="2020-01-01T00:00:00Z")
    assert read(single(both)).facts == [fact(kind=Kind.CHANGE, at=AT_NS + 4_250_000_000)]


@pytest.mark.parametrize("at", [AT, AT_NS / 10**9])
def test_a_time_is_used_up_to_the_tolerance_and_then_the_next_one(at: Any) -> None:
    later = message(transition(at=at), meta={"timestamp": "2099-01-01T00:00:00Z"})
    for raw, number in ((body(later), 1), (single(later), 1), (body(*[later] * 8), 8)):
        used, reading = (
            parse(raw, identifier_field="_id", received_ns=AT_NS - SECOND, tolerance_ns=tolerance_ns)
            for tolerance_ns in (SECOND, SECOND - 1)
        )
        assert used.facts == [fact()] * number
        assert reading.facts == [structs.replace(fact(at=AT_NS - SECOND), claimed_ns=AT_NS)] * number
        assert reading.claims == number


@pytest.mark.parametrize("at", ["soon", "2026-13-01T00:00:00Z", "0000-13-01T00:00:00Z"])
def test_an_unreadable_time_is_parked_and_not_guessed(at: str) -> None:
    raw = single(message(transition(at=at)))
    reading = read(raw)
    assert (reading.facts, why(reading)) == ([], [reasons.UNREADABLE_TIME])
    assert read(raw, released=True).facts == [fact(at=AT_NS + 4_250_000_000)]


# --- Audiences -----------------------------------------------------------------------------------------------


def test_an_audience_is_named_by_id_by_slug_or_by_both() -> None:
    events = [transition(slug=None), transition(segment=None), transition(segment=" s1 ", slug=" gold_club ")]
    assert read(single(message(*events))).facts == [fact(slug=""), fact(segment=""), fact()]
    assert read(single(message(transition(), *events))).facts == [fact(), fact(slug=""), fact(segment=""), fact()]


def test_a_number_for_an_audience_is_kept_exactly() -> None:
    reading = read(single(message(transition(segment=2**64 + 1, slug=20260302))))
    assert reading.facts == [fact(segment="18446744073709551617", slug="20260302")]


@pytest.mark.parametrize(
    ("segment", "slug"), [(None, None), ("", " "), ("a\0b", "x"), ("", "x\0"), ("s" * 501, "x"), (None, "é" * 251)]
)
def test_a_transition_whose_audience_can_not_be_stored_is_parked(segment: str | None, slug: str | None) -> None:
    reading = read(body(message(transition(segment=segment, slug=slug)), message(who="lee")))
    assert (reading.facts, why(reading)) == ([fact("lee")], [reasons.NO_AUDIENCE])


def test_an_id_with_more_digits_than_python_converts_is_parked() -> None:
    raw = single(message()).replace(b'"s1"', b"9" * 5000)
    assert why(read(raw)) == [reasons.UNREADABLE_MESSAGE]


# --- Identifiers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ['"email"', "back\\slash", "bell\a"], ids=ascii)
def test_an_identifier_field_that_no_decoder_can_name_is_read_like_any_other(field: str) -> None:
    """It is mostly a field with quotes around its name, which no message has. Its calls must not all fail."""
    there, other = message(field=field, who=["kim", 7]), message(field="email")
    for raw in (body(there, other), single(there) + single(other)):
        reading = read(raw, field=field)
        assert (reading.messages, reading.facts, why(reading)) == (2, [fact(), fact("7")], [reasons.NO_IDENTIFIER])
    assert read(b"[]", field=field) == Reading()
    assert why(read(b"[1]", field=field)) == [reasons.NOT_A_MESSAGE]


def test_the_identifier_field_may_hold_a_list() -> None:
    reading = read(
        single(message(who=["c1", "c2", " c2\n", "", "  ", None, True, ["c3"], {"c": 4}], field="_uids")), field="_uids"
    )
    assert reading.facts == [fact("c1"), fact("c2")]
    assert (reading.skipped, reading.to_park) == (6, [])


def test_a_change_asserts_membership_for_every_identifier_of_a_list() -> None:
    reading = read(single(message(transition("change"), who=["c1", "c2", "c3"], field="_uids")), field="_uids")
    assert [(one.identifier, one.kind) for one in reading.facts] == [
        ("c1", Kind.CHANGE),
        ("c2", Kind.CHANGE),
        ("c3", Kind.CHANGE),
    ]


def test_every_identifier_goes_with_every_segment_event() -> None:
    events = transition(), transition("exit", segment="s2", slug="basket")
    reading = read(single(message(*events, who=["c1", "c2"])))
    assert Counter(reading.facts) == Counter(
        fact(who, kind, segment=segment, slug=slug)
        for who in ("c1", "c2")
        for kind, segment, slug in ((Kind.ENTER, "s1", "gold_club"), (Kind.EXIT, "s2", "basket"))
    )


@pytest.mark.parametrize("digits", ["9007199254740993", "-5", "0", "1.50", "1e-3", "1e999", "1" * 256])
def test_a_number_is_kept_by_its_own_digits(digits: str) -> None:
    raw = single(message(who=1)).replace(b'"_id": 1', f'"_id": {digits}'.encode())
    assert [one.identifier for one in read(raw).facts] == [digits]


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("12345.0", "12345"),
        ("12345.000", "12345"),
        ("1.2345e4", "12345"),
        ("1.2345E+04", "12345"),
        ("123450e-1", "12345"),
        ("-7.0", "-7"),
        ("1e3", "1000"),
        ("123456789012345678901234567890.000", "123456789012345678901234567890"),
    ],
)
def test_a_whole_number_is_the_integer_however_it_is_written(written: str, kept: str) -> None:
    raw = single(message(who=1)).replace(b'"_id": 1', f'"_id": [{written}]'.encode())
    assert [one.identifier for one in read(raw).facts] == [kept]
    as_text = single(message(who=written))
    assert [one.identifier for one in read(as_text).facts] == [written]  # a text is what it says


@pytest.mark.parametrize("odd", ["-Infinity", "Infinity", "NaN", "-", "1e", "--1", "1.", "0x10"])
def test_a_malformed_number_is_no_identifier(odd: str) -> None:
    raw = single(message(who=1)).replace(b'"_id": 1', f'"_id": {odd}'.encode())
    assert (read(raw).facts, why(read(raw))) == ([], [reasons.UNUSABLE_IDENTIFIER])


AWKWARD = [
    "{",
    "}",
    '"',
    "\\",
    ",",
    "a,b",
    "null",
    "NULL",
    "a b",
    "{}",
    '{"a"}',
    "\\\\",
    "a\nb",
    "it's",
    "$1",
    "%s",
    "💛",
    "a\u0301",
    "\x7f\x1b",
]


@pytest.mark.parametrize("who", AWKWARD)
def test_an_awkward_identifier_is_kept_as_it_is(who: str) -> None:
    assert [one.identifier for one in read(single(message(who=who))).facts] == [who]
    assert [one.identifier for one in read(json.dumps(message(who=who)).encode()).facts] == [who]


def test_a_control_character_in_an_identifier_is_kept_also_without_an_escape() -> None:
    raw = single(message()).replace(b"kim", b"a\tb")
    assert read(raw).facts == read(b"[" + raw + b"]").facts == [fact("a\tb")]


@pytest.mark.parametrize(
    ("who", "seen"),
    [
        ([], "a list"),
        ("", "a blank text"),
        ("  ", "a blank text"),
        ("\u200b\u200d \ufeff", "a blank text"),
        (["\xad", "\u2800\u3164\ufe0f"], "a list"),
        (None, "null"),
        (True, "true"),
        ({}, "an object"),
        ([[]], "a list"),
        (["", None], "a list"),
    ],
)
def test_a_field_that_holds_no_identifier_is_not_called_missing(who: Any, seen: str) -> None:
    one = message(who=who)
    one["data"] |= {"email": "kim@example.com"}
    reading = read(single(one))
    assert (reading.facts, why(reading)) == ([], [reasons.UNUSABLE_IDENTIFIER])
    assert f"'_id' is {seen}" in reading.to_park[0].detail
    assert "kim@example.com" not in reading.to_park[0].detail


def test_an_identifier_keeps_its_invisible_characters_beside_visible_ones() -> None:
    assert read(body(message(who="\u200bk\u00adim\ufeff"))).facts == [fact("\u200bk\u00adim\ufeff")]
    assert why(read(body(message(transition(segment="\u200b", slug="\ufeff"))))) == [reasons.NO_AUDIENCE]


def test_an_empty_list_is_parked_unless_it_may_empty_a_profile() -> None:
    one = message(who=[], field="uids")
    one["data"]["_id"] = "p9"
    reading = read(single(one), field="uids")
    assert (reading.emptied, why(reading)) == ([], [reasons.UNUSABLE_IDENTIFIER])
    reading = read(single(one), field="uids", empty_lists=True)
    assert (reading.emptied, why(reading)) == ([structs.replace(fact(""), profile="p9")], [])


def test_a_message_without_the_identifier_field_names_the_fields_that_came() -> None:
    one = message()
    del one["data"]["_id"]
    one["data"] |= {"email": "kim@example.com", "user_id": 7}
    reading = read(single(one))
    assert (reading.facts, why(reading)) == ([], [reasons.NO_IDENTIFIER])
    assert "'_id'" in reading.to_park[0].detail
    assert "email, segment_events, user_id" in reading.to_park[0].detail
    assert reading.skipped == 0
    assert "kim@example.com" not in reading.to_park[0].detail


@pytest.mark.parametrize(
    "odd",
    [
        *('"id": 7', '"id": 7.5', '"id": true', '"id": null', '"id": "a", "id": "b"', '"slug": 3', '"slug": [1]'),
        *('"event": null', '"event": 1', '"event": " EXIT "', '"event": "\\ud800"', '"enter": 1772442900'),
        *('"enter": ""', '"enter": false', '"enter": NaN', '"enter": 1e400', '"enter": "0001-01-01T00:00:00Z"'),
        *('"more": undefined', '"more": "\\ud800"', '"more": "\\u0001"', '"more": [[1], {"id": 2}]'),
    ],
)
def test_a_flawed_profile_field_does_not_change_how_segment_events_are_read(odd: str) -> None:
    """A message with a flaw is cut by its brackets, and its pieces are decoded by types where that works."""
    events = json.dumps(transition())[:-1] + ", " + odd + "}"
    raw = single(message(transition(), who="kim")).decode()
    start, end = raw.index("[") + 1, raw.rindex("]")
    raw = raw[:start] + events + ", " + json.dumps(transition("exit", segment="s2")) + raw[end:]
    sound, flawed = read(raw.encode()), read(raw.replace('"_id"', '"x": undefined, "_id"').encode())
    assert len(sound.facts) >= 1
    assert (flawed.facts, flawed.claims, flawed.job) == (sound.facts, sound.claims, sound.job)
    assert [item[:2] for item in flawed.to_park] == [item[:2] for item in sound.to_park]


# --- Placeholders -----------------------------------------------------------------------------------------------

PLACEHOLDERS = frozenset({"null", "undefined", "none", "nan", "n/a", "[objectobject]"})


@pytest.mark.parametrize(
    "who",
    [
        *("null", "NULL", " Null ", "undefined", "None", "NaN", "[object Object]", "N/A"),
        *("0", "000000", "00000000-0000-0000-0000-000000000000", 0, 0.0, "-0"),
        *("0.0", "0.000", "{00000000-0000-0000-0000-000000000000}", "n / a", "[object  Object]", "[objectObject]", "-"),
        *("null\u200b", "\u200enull", "\ufeffundefined", "n\u00adone", "0\u200b", "\u2060-"),
        *("nu\x07ll", "\x7fnull", "null\x7f", "\x85none", "\x07"),
        *("(null)", "<none>", "[undefined]", "{NaN}", '"null"', "'null'", "( n/a )", "([object Object])"),
        *("[]", '""', "''", "()", "(0)", '"000"', "'00000000-0000-0000-0000-000000000000'"),
    ],
)
def test_a_placeholder_is_no_customer(who: Any) -> None:
    for raw in (single(message(who=who)), body(message(who=who)), body(message(who=[who]))):
        reading = read(raw, placeholders=PLACEHOLDERS)
        assert (reading.facts, why(reading)) == ([], [reasons.PLACEHOLDER])


@pytest.mark.parametrize(
    "who",
    [
        "nullable",
        "none@example.com",
        "100",
        "0a",
        "nan-7",
        "undefined1",
        "0.0.0",
        "0.1",
        "(7)",
        "(none",
        "((null))",
        "<null]",
    ],
)
def test_an_identifier_that_begins_like_a_placeholder_is_kept(who: str) -> None:
    assert [one.identifier for one in read(body(message(who=who)), placeholders=PLACEHOLDERS).facts] == [who]


@pytest.mark.parametrize("profile", ["null", "NULL", "0", "00000000-0000-0000-0000-000000000000"])
@pytest.mark.parametrize("who", ["kim", ["kim", "lee"]])
def test_a_profile_that_is_a_placeholder_is_no_profile(profile: str, who: Any) -> None:
    """Otherwise the lists of different people would count as one list that keeps changing."""
    one = message(who=profile)
    one["data"]["uids"] = who
    reading = read(body(one), field="uids", placeholders=PLACEHOLDERS)
    assert {fact.profile for fact in reading.facts} == {""}


@pytest.mark.parametrize("profile", ["a\0b", "\ud83d", "p" * 257, " "])
def test_a_profile_that_can_not_be_stored_is_no_profile(profile: str) -> None:
    one = message(field="uids", who=["kim", "lee"])
    one["data"]["_id"] = profile
    assert read(json.dumps([one]).encode(), field="uids").facts == [fact(), fact("lee")]


@pytest.mark.parametrize("start", [b"[", b'{"a":'])
def test_a_body_nested_too_deeply_to_read_is_not_reported_as_cut_off(start: bytes) -> None:
    depth = 1_000_001
    raw = start + b"[" * depth + b"]" * depth + (b"]" if start == b"[" else b"}")
    assert why(read(raw)) == [reasons.NOT_JSON]


def test_a_placeholder_in_a_list_parks_only_that_placeholder() -> None:
    reading = read(body(message(who=["null", "kim", "lee", "0"])), placeholders=PLACEHOLDERS)
    assert ([one.identifier for one in reading.facts], why(reading)) == (["kim", "lee"], [reasons.PLACEHOLDER])


@pytest.mark.parametrize(
    "who",
    [
        *(
            b"a\x7fb",
            b"a\x01b",
            b"a\tb",
            b"a\\tb",
            b"a\\u0000b",
            b"\\u00e9",
            "é".encode(),
            "é".encode() * 130,
            b"a" * 257,
            b" kim ",
            b" ",
        ),
        *(
            b"[object    Object]",
            b"N o n e" + b" " * 20,
            b"0" * 40,
            b"0-" * 20 + b"7",
            b"." * 40,
            b"\\u0030",
            b"null-customer",
        ),
    ],
)
@pytest.mark.parametrize("field", ["_id", "email"])
def test_an_identifier_is_read_alike_in_a_body_of_plain_texts_and_in_any_other(field: str, who: bytes) -> None:
    """A body of ASCII without escapes is checked as a whole, not identifier by identifier."""
    one = message(who="WHO")
    one["data"] = {field: "WHO", **one["data"]}
    raw = single(one).replace(b"WHO", who)
    alone = read(b"[" + raw + b"]", field=field, placeholders=PLACEHOLDERS)
    for other in (single(message(who="Zoë", meta={"object": "account"})), b"1"):
        beside = read(b"[" + raw + b"," + other + b"]", field=field, placeholders=PLACEHOLDERS)
        assert beside.facts == alone.facts
        assert why(beside)[:-1] == why(alone)


def test_without_configured_placeholders_every_identifier_is_kept() -> None:
    assert [one.identifier for one in read(body(message(who="null"), message(who="000"))).facts] == ["null", "000"]


def test_an_identifier_that_is_too_long_is_parked_and_the_others_are_kept() -> None:
    reading = read(single(message(who=["é" * 128, "é" * 128 + "x", "lee", "y" * 300])))
    assert [one.identifier for one in reading.facts] == ["é" * 128, "lee"]
    assert [(item.reason, item.detail) for item in reading.to_park] == [(reasons.IDENTIFIER_TOO_LONG, " (and 1 more)")]


@pytest.mark.parametrize("encoded", [b'"a\\u0000b"', b'"a\xffb"', b'["a\xed\xa0\x80"]'])
def test_an_identifier_that_can_not_be_stored_is_parked(encoded: bytes) -> None:
    raw = single(message(who=0)).replace(b'"_id": 0', b'"_id": ' + encoded)
    reading = read(b"[" + raw + b"," + single(message(who="lee")) + b"]")
    assert (reading.facts, why(reading)) == ([fact("lee")], [reasons.UNREADABLE_IDENTIFIER])


def test_a_lone_surrogate_in_an_identifier_parks_only_that_identifier() -> None:
    raw = single(message(who=0)).replace(b'"_id": 0', b'"_id": ["a\\ud83d", "kim"]')
    reading = read(b"[" + raw + b"," + single(message(who="lee")) + b"]")
    assert (reading.facts, why(reading)) == ([fact(), fact("lee")], [reasons.UNREADABLE_IDENTIFIER])


def test_invalid_utf_8_in_an_unused_field_parks_nothing() -> None:
    raw = single(message()).replace(b'"_id"', b'"first_name": "Zo\xeb", "_id"')
    assert read(raw).facts == read(b"[" + raw + b"]").facts == [fact()]


def test_the_top_level_is_read_only_where_allowed() -> None:
    beside = message(who=None, _id="beside")
    absent = {**beside, "data": {"segment_events": beside["data"]["segment_events"]}}
    for one in (beside, absent):
        for raw in (single(one), body(one), body(one, "oops")):
            assert read(raw).facts == []
            assert read(raw, allow_top_level=True).facts == [fact("beside")]
    assert read(single(message(_id="beside")), allow_top_level=True).facts == [fact()]


def test_the_last_of_two_equal_keys_is_used_on_each_path() -> None:
    twice = single(message()).replace(b'"_id": "kim"', b'"_id": "first", "_id": "kim"')
    assert read(twice).facts == read(b"[" + twice + b"]").facts == read(b"[" + twice + b",1]").facts == [fact()]


# --- Stored parts of a parked item ---------------------------------------------------------------------------


def test_the_envelope_keeps_no_value_of_a_profile_but_the_identifier() -> None:
    one = message(who="kim", field="user_id")
    one["data"] |= {"_id": "p9", "email": "kim@example.com", "orders": [{"sum": 12}]}
    kept = messages.envelope(single(one), identifier_field="user_id")
    assert b"kim@example.com" not in kept
    assert json.loads(kept) == {**one, "data": {**one["data"], "email": None, "orders": None}}
    assert read(kept, field="user_id").facts == [structs.replace(fact(), profile="p9")]


@pytest.mark.parametrize("raw", [b"", b"oops", b"[1]", b'{"data": 5}', b'{"data": {"a": "\xff'])
def test_the_envelope_of_other_bytes_is_unchanged(raw: bytes) -> None:
    assert messages.envelope(raw, identifier_field="_id") == raw


# --- Bounds --------------------------------------------------------------------------------------------------


def test_the_parts_of_a_message_that_share_a_reason_are_one_item() -> None:
    """Each item holds the whole message: as many items as parts would be the square of the body."""
    reading = read(body(message(*[transition("paused")] * 20_000), message()))
    assert reading.facts == [fact()]
    assert [(item.reason, item.detail) for item in reading.to_park] == [
        (reasons.UNKNOWN_EVENT, "the event is 'paused' (and 19999 more)")
    ]


def test_a_message_with_too_many_events_is_parked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "FACTS_AT_MOST", 6)
    product = message(transition(), transition("exit", segment="s2", slug="basket"), who=["c1", "c2", "c3"])
    reading = read(body(message(), product, message(who="lee")))
    assert reading.facts == [fact(), fact("lee")]
    assert [(item.reason, item.detail) for item in reading.to_park] == [
        (reasons.TOO_MANY_EVENTS, "3 identifiers in 2 segment events")
    ]
    assert len(read(reading.to_park[0].raw).facts) == 6  # alone, the message is within the limit
    monkeypatch.setattr(payload, "FACTS_AT_MOST", 5)
    assert why(read(reading.to_park[0].raw, released=True)) == [reasons.TOO_MANY_EVENTS]
    assert re.search("Release .* alone.* If it stays parked, .* discard", reasons.HINTS[reasons.TOO_MANY_EVENTS])


def test_messages_with_too_many_events_together_are_parked(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (payload, common_messages):
        monkeypatch.setattr(module, "FACTS_AT_MOST", 2)
    reading = read(body(message(), message(who="lee"), message(who="max")))
    assert (reading.messages, reading.facts, why(reading)) == (3, [fact(), fact("lee")], [reasons.TOO_MANY_EVENTS])
    for module in (payload, common_messages):
        monkeypatch.setattr(module, "FACTS_AT_MOST", 15)
    reading = read(body(*[message(transition(), transition("exit"))] * 8))
    assert (len(reading.facts), why(reading)) == (14, [reasons.TOO_MANY_EVENTS])


def test_two_long_lists_do_not_take_the_memory_of_the_process() -> None:
    reading = read(single(message(*[transition()] * 20_000, who=[str(number) for number in range(20_000)])))
    assert (reading.facts, why(reading)) == ([], [reasons.TOO_MANY_EVENTS])


@pytest.mark.parametrize("wrap", [b"%s", b'{"events": %s}'])
@pytest.mark.parametrize("element", [b"1", b'{"data":{}}', single(message(who="a"))])
@pytest.mark.parametrize("uncounted", [10, 10_000_000])
def test_an_array_far_longer_than_any_batch_is_kept_whole(
    wrap: bytes, element: bytes, uncounted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "MESSAGES_AT_MOST", 100)
    monkeypatch.setattr(bodies, "COMMAS_UNCOUNTED", uncounted)
    at_most = wrap % (b"[" + b",".join([element] * 100) + b"]")
    assert read(at_most).messages == 100
    raw = wrap % (b"[" + b",".join([element] * 101) + b"]")
    reading = read(raw)
    assert [(item.reason, item.raw) for item in reading.to_park] == [(reasons.TOO_MANY_MESSAGES, raw)]


def test_a_text_of_very_many_values_is_cut_instead_of_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_pieces, "_VALUES_AT_MOST", 10)
    for raw in (b"[" + b"[]," * 5 + b"1]", b'{"a": [{}, {}, {}], "b": [{}, {}, {}]}'):
        assert json_pieces.read_value(raw) == raw
    assert json_pieces.read_value(b"[1, 2, 3, 4, 5]") == [b"1", b"2", b"3", b"4", b"5"]


def test_commas_inside_messages_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MESSAGES_AT_MOST", 2)
    for uncounted in (10, 10_000_000):
        monkeypatch.setattr(bodies, "COMMAS_UNCOUNTED", uncounted)
        assert read(body(message(who=["a,b"] * 50), message())).facts == [fact("a,b"), fact()]


def test_junk_takes_time_in_proportion_to_its_length() -> None:
    started = time.monotonic()
    read(b'["' + b'\\"' * 1_000_000)
    read(b"[" + b'"\\' * 1_000_000)
    assert time.monotonic() - started < 100  # in the square of it: an hour


# --- Any input -----------------------------------------------------------------------------------------------

words = st.sampled_from(["enter", "exit", "change", "Entered", "paused", "", "user", "event"])
clocks = st.sampled_from([AT, "2026-03-02T09:15:00.123456789-07:00", "0001-01-01T00:00:00Z", "", "soon"])
names = st.sampled_from(["s1", "s2", "gold_club", "", " ", "Gold Club", "x" * 600, "a\0b", "é"])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | words | clocks | names
junk = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
identifiers = (
    st.text(max_size=6) | st.integers() | st.lists(st.text(max_size=3) | st.integers() | junk, max_size=4) | junk
)


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


def mostly(usual: st.SearchStrategy[Any], other: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """``usual`` in 15 of 16 cases, so that most messages give facts."""
    return st.sampled_from([usual] * 15 + [other]).flatmap(lambda chosen: chosen)


def some_messages(oddly: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Messages in the documented layout; any part may be missing, or replaced by ``oddly``."""
    usual = st.fixed_dictionaries(
        {
            "id": mostly(st.sampled_from(["s1", "s2"]), names | oddly),
            "slug": mostly(st.sampled_from(["gold_club", "basket"]), names | oddly),
            "event": mostly(st.sampled_from(["enter", "exit", "change"]), words | oddly),
        },
        optional={"enter": mostly(clocks, oddly), "exit": mostly(clocks, oddly)},
    )
    bare = optional(id=names | oddly, slug=names | oddly, event=words | oddly, enter=clocks | oddly)
    transitions = st.lists(mostly(usual, bare | oddly), min_size=1, max_size=3)
    texts = st.text(min_size=1, max_size=6)
    data = mostly(
        st.fixed_dictionaries(
            {"_id": mostly(texts, identifiers), "segment_events": mostly(transitions, st.just([]) | oddly)},
            optional={"other": mostly(texts, identifiers)},
        ),
        optional(_id=identifiers, segment_events=transitions, other=junk),
    )
    meta = mostly(
        st.fixed_dictionaries(
            {"object": mostly(st.just("user"), words | oddly), "timestamp": mostly(st.just(AT), clocks | oddly)},
            optional={"subscription_id": mostly(names, oddly)},
        ),
        optional(object=words | oddly, timestamp=clocks | oddly, subscription_id=names | oddly),
    )
    rest = {"time": mostly(clocks, oddly), "source": mostly(names, oddly)}
    return mostly(
        st.fixed_dictionaries({"data": data, "meta": mostly(meta, oddly)}, optional={"id": oddly, "_id": junk, **rest}),
        optional(id=oddly, data=data | oddly, meta=meta | oddly, **rest),
    )


tidy = some_messages(st.none())
untidy = some_messages(junk)


@given(
    st.binary(max_size=60)
    | st.lists(st.sampled_from(list(b'[]{}",:\\ \x001eE-.u\xff\xef\xbbtrue')), max_size=60).map(bytes)
)
def test_any_bytes_give_facts_or_parked_items(raw: bytes) -> None:
    reading = read(raw)
    assert reading.messages <= len(reading.to_park) + len(reading.facts)
    if not reading.messages:
        assert json.loads(raw) in ([], {"data": []}, {"events": []})


@given(st.lists(untidy | junk, max_size=5), st.booleans(), st.booleans())
def test_a_batch_is_the_sum_of_its_messages(batch: list[Any], allow_top_level: bool, released: bool) -> None:
    together, *alone = (
        read(raw, allow_top_level=allow_top_level, released=released)
        for raw in (body(*batch), *(body(one) for one in batch))
    )
    assert together.messages == len(batch)
    assert together.facts == [one for reading in alone for one in reading.facts]
    assert [item[:2] for item in together.to_park] == [item[:2] for reading in alone for item in reading.to_park]
    assert together.skipped == sum(reading.skipped for reading in alone)
    for one, reading in zip(batch, alone, strict=True):
        assert reading.messages == 1
        assert reading.facts or reading.to_park, one
        assert all(json.dumps(json.loads(item.raw)) == json.dumps(one) for item in reading.to_park)


@given(st.lists(tidy, max_size=5), st.sampled_from(["_id", "other"]))
def test_both_paths_read_the_same(batch: list[Any], field: str) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(common_messages, "_LEAST_AS_COLUMNS", 1)
        quick, slow = read(body(*batch), field=field), read(body(*batch, 1), field=field)
    assert slow.messages == quick.messages + 1
    assert slow.facts == quick.facts
    assert [item[:2] for item in slow.to_park[:-1]] == [item[:2] for item in quick.to_park]
    assert (slow.skipped, slow.job) == (quick.skipped, quick.job)
    wrapped = single({"events": batch})
    if b"Infinity" not in wrapped and b"NaN" not in wrapped:  # that would be no object, and is parked whole
        assert read(wrapped, field=field).facts == quick.facts


def varied() -> list[Any]:
    """Messages of which some are common and some are not, by one part or another."""
    identifiers = ["kim", " kim ", "", "x" * 256, "x" * 257, "zoë", "a\tb", "kim\u00a0"]
    metas = [
        {"object": kind, "timestamp": at, "subscription_id": job}
        for kind, at, job in [("user", AT, "7"), ("event", AT, "8"), (None, "", None), ("user", "soon", "")]
    ]
    moments = [
        *("2026-03-02T09:15:00.123456789Z", "2026-03-02T09:15:00.5Z", "2026-03-02T09:15:00.1234567891Z", AT, "", None),
        *("2026-03-02T09:15:00.٣Z", "2026-03-02T09:15:00.5X", "2026-03-02T24:15:00.5Z", "2026-3-002T09:15:00.5Z"),
        *("1500-03-02T09:15:00.5Z", "1677-09-21T00:12:43.1Z", "1677-09-21T00:12:44.1Z", "0001-01-01T00:00:00Z"),
        *("1970-01-01T00:00:00Z", "1970-01-01T00:00:00.0Z", "1999-12-31T23:59:59.9Z", "2000-01-01T00:00:00Z"),
        *("2026-03-02T09:15:60.5Z", "2026-W10-1T09:15:00.5Z", "2026-03-02t09:15:00.5Z", "2026-03-02T09:15:00.Z"),
    ]
    transitions: list[list[Any]] = [[]] + [
        [transition(event, at=at, segment=segment, slug=slug), transition()]
        for event, segment, slug in [
            ("enter", "s1", "gold"),
            ("exit", "s2", None),
            ("change", 7, ""),
            ("none", "", ""),
        ]
        for at in moments
    ]
    batch: list[Any] = [
        {"data": {"_id": who, "other": other, "segment_events": events}, "meta": meta}
        for who, other in [(who, "p1") for who in identifiers] + [("kim", other) for other in identifiers]
        for meta in metas
        for events in transitions
    ]
    batch += [
        {"data": {"_id": who, "segment_events": events}, "time": at, "source": "job"}
        for who in identifiers
        for at in moments
        for events in transitions[::7]
    ]
    batch[0]["meta"] = {**metas[0], "subscription_id": "the first"}
    batch[0]["data"]["segment_events"] = [transition("change", enter="2026-01-01T00:00:00.5Z")]
    return batch


def assert_read_alike(batch: list[Any], field: str) -> Reading:
    """``common_messages`` reads common messages; one element that is no message sends all through the general path."""
    quick, slow = read(body(*batch), field=field), read(body(*batch, 1), field=field)
    as_columns = [*zip(*quick.columns, strict=True)]
    assert quick.facts == slow.facts
    assert as_columns == [((f.segment_id, f.slug), f.identifier, f.kind, f.occurred_ns, f.profile) for f in slow.facts]
    assert [item[:2] for item in quick.to_park] == [item[:2] for item in slow.to_park[:-1]]
    assert (quick.messages, quick.skipped, quick.job) == (slow.messages - 1, slow.skipped, slow.job)
    return quick


@pytest.mark.parametrize("field", ["_id", "other"])
def test_the_quick_path_and_the_general_path_give_the_same_facts(field: str) -> None:
    assert len(assert_read_alike(varied(), field).facts) > 1000


@pytest.mark.parametrize("escaped", [False, True])
@pytest.mark.parametrize("field", ["_id", "other"])
def test_a_batch_of_common_messages_gives_the_same_facts_as_columns(
    field: str, escaped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind of message among common ones, which alone are read column by column."""
    taken: list[bool] = []
    plain = common_messages.CommonMessages.take_all

    def take_all(*values: Any) -> bool:
        taken.append(plain(*values))
        return taken[-1]

    monkeypatch.setattr(common_messages.CommonMessages, "take_all", take_all)
    common = [
        message(*[transition(event, segment=f"s{number}", slug=slug), transition("exit")][: 1 + number % 2], who=who)
        for number, (event, slug, who) in enumerate(
            product(["enter", "change"], ["gold", ""], ["kim", " lee", "0x4af-" * 20])
        )
    ]
    for number, one in enumerate(common):
        one["data"]["other"] = f"p{number}"
    common[0]["meta"]["subscription_id"] = ""
    if escaped:
        common[1]["data"]["other"] = 'quoted "name"'
    assert_read_alike(common, field)
    assert taken == [True]
    for one in varied()[:: 1 if field == "_id" else 5]:
        assert_read_alike([*common, one], field)
    assert 0 < taken.count(False) < len(taken)
    for least in (7, 8):
        taken.clear()
        assert_read_alike(common[:least], field)
        assert taken == [least == 8]


@pytest.mark.parametrize(
    "who",
    [
        "null",
        "undefined",
        "0",
        "0" * 40,
        "0-0",
        "n" * 256,
        "n" * 257,
        "ü" * 200,
        "",
        "u n d e f i n e d" + " " * 20,
        "kïm",
        "k\0m",
        "\u200b",
        "-",
    ],
)
def test_an_unusual_identifier_among_common_ones_is_read_alike(who: str) -> None:
    common = [message(who=f"0{number:040}x") for number in range(8)]
    options: dict[str, Any] = {"placeholders": frozenset(["null", "undefined"])}
    quick, slow = (read(body(*common, message(who=who), *more), **options) for more in ((), (1,)))
    assert quick.facts == slow.facts
    assert why(quick) == why(slow)[:-1]


@pytest.mark.parametrize("common", [0, 8])
@pytest.mark.parametrize("over_ns", [0, 1])
def test_a_time_too_far_ahead_is_not_used_alone_or_among_common_ones(common: int, over_ns: int) -> None:
    latest_ns = RECEIVED_NS + 5 * SECOND
    some = [message(who=f"u{number}") for number in range(common)]
    ahead = message(transition(at=times.text(latest_ns + over_ns)), who="lee")
    quick, slow = (read(body(*some, ahead, *some, *more), tolerance_ns=5 * SECOND) for more in ((), (1,)))
    assert quick.facts == slow.facts
    (found,) = (one for one in quick.facts if one.identifier == "lee")
    assert (found.occurred_ns == latest_ns) == (over_ns == 0)


@given(tidy)
def test_a_message_alone_reads_like_a_batch_of_one(one: dict[str, Any]) -> None:
    if not isinstance(one.get("data"), list):
        assert read(single(one)) == read(body(one))


@given(untidy)
def test_an_envelope_gives_the_same_facts_as_its_message(one: dict[str, Any]) -> None:
    raw = single(one)
    for item in read(raw).to_park:
        if item.reason != reasons.NO_IDENTIFIER:
            kept = messages.envelope(item.raw, identifier_field="_id")
            assert read(kept).facts == read(raw).facts


@given(untidy)
def test_every_fact_can_be_stored(one: dict[str, Any]) -> None:
    for found in read(body(one)).facts:
        for text in (found.segment_id, found.slug, found.identifier):
            assert "\0" not in text
            assert text == text.strip()
            assert len(text.encode()) <= facts.NAME_BYTES
        assert found.identifier
        assert found.segment_id or found.slug
        assert -(2**63) <= found.occurred_ns < 2**63


# --- A malformed part does not affect the other parts ----------------------------------------------------------


@pytest.mark.parametrize("slug", ["v\x00", "\ud83d", "x" * 501, "é" * 251, "\x00", "ok\udfff"])
@pytest.mark.parametrize("flaw", [b"", b'"x":NaN,'])
def test_an_unstorable_slug_loses_no_event_that_has_a_segment_id(slug: str, flaw: bytes) -> None:
    raw = json.dumps(message(transition("exit", slug=slug))).encode().replace(b'"data": {', b'"data": {' + flaw)
    reading = read(raw)
    assert [(one.segment_id, one.slug, one.kind) for one in reading.facts] == [("s1", "", Kind.EXIT)]
    assert why(reading) == []


@pytest.mark.parametrize("end", [b"\x00", b"\n\x00\x00", b" \x00 \n"])
def test_nul_bytes_behind_a_body_are_ignored(end: bytes) -> None:
    for raw, count in ((body(message(), message(who="lee")), 2), (single(message()), 1)):
        reading = read(raw + end)
        assert (len(reading.facts), reading.to_park) == (count, [])


@pytest.mark.parametrize(
    "wrapper", [b'{"data":null,"events":%s}', b'{"events":%s,"data":null}', b'{"events":null,"data":%s}']
)
def test_a_wrapper_with_a_null_beside_its_list_is_unwrapped(wrapper: bytes) -> None:
    assert read(wrapper % body(message())).facts == [fact()]


@pytest.mark.parametrize("place", ["enter", "event"])
@pytest.mark.parametrize("value", [{"by": "ann@example.com"}, ["ann@example.com"], "ann@example.com", "x" * 4_000])
def test_no_detail_quotes_a_value_that_may_be_personal_or_long(place: str, value: Any) -> None:
    reading = read(single(message({**transition(), place: value})))
    assert reading.facts == []
    assert all("ann@" not in item.detail and len(item.detail) < 200 for item in reading.to_park)


def test_an_overlong_list_of_identifiers_is_rejected_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "FACTS_AT_MOST", 100)
    longest: list[int] = [0]
    elements = json_pieces.read_elements

    def measured(value: Any) -> list[Any]:
        longest.append(len(built := elements(value) or []))
        return built

    monkeypatch.setattr(payload, "read_elements", measured)
    assert read(single(message(who=["a,b", *["a"] * 99]))).facts == [fact("a,b"), fact("a")]
    for one in ("NaN", '""', '"a"'):
        raw = single(message()).replace(b'"kim"', ("[" + ",".join([one] * 200) + "]").encode())
        assert why(read(raw)) == [reasons.TOO_MANY_EVENTS]
    assert max(longest) <= 100
