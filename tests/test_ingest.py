"""Receiving, on a real PostgreSQL: what a call leaves in the log, in the page of parked items, and among audiences."""

import itertools
import json
import random
import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.db.models import Count, F, Max
from django.utils.timezone import now

from audiences.encryption import decrypt
from audiences.models import Audience, Event, Install, Lane, Parked, Receipt
from audiences.operations import parked_items
from audiences.receiving import audience_lookup, ingest
from audiences.receiving.call_values import NewReceipt, Stored
from audiences.receiving.ingest import receive
from lytics import reasons
from lytics.facts import Fact, Kind
from tests.messages import AT_NS, SECOND, body, message, single, transition
from tests.threads import PATIENCE, Gate, eventually, start, together, waiting_for_a_lock

pytestmark = pytest.mark.django_db
at_once = pytest.mark.django_db(transaction=True)

ENTER, EXIT, CHANGE = Kind.ENTER, Kind.EXIT, Kind.CHANGE


def log(install: Install) -> dict[str, list[tuple[int, str, int]]]:
    """The log by ODP id: number, identifier, kind."""
    kept: dict[str, list[tuple[int, str, int]]] = {}
    for event in Event.objects.filter(audience__install=install).select_related("audience").order_by("pk"):
        kept.setdefault(event.audience.odp_id, []).append((event.sequence, event.identifier, event.kind))
    return kept


def raw_of(parked: Parked) -> Any:
    return json.loads(decrypt(bytes(parked.raw or b"")))


def enter(segment: str | None, slug: str | None, *who: str) -> dict[str, Any]:
    return message(transition(segment=segment, slug=slug), who=list(who) or "kim")


# --- The log --------------------------------------------------------------------------------------------------


def test_the_events_of_a_call_are_numbered_in_its_order(install: Install) -> None:
    leave = message(transition("exit"), who="lee")
    receive(install, body(enter("s1", "gold_club", "b", "a"), enter("s2", "basket"), leave, message(who="a")))
    assert log(install) == {
        "lytics_gold_club": [(1, "b", ENTER), (2, "a", ENTER), (3, "lee", EXIT), (4, "a", ENTER)],
        "lytics_basket": [(1, "kim", ENTER)],
    }


def test_the_next_call_counts_on(install: Install) -> None:
    for who in ("kim", "lee"):
        receive(install, body(message(who=who)))
    assert log(install) == {"lytics_gold_club": [(1, "kim", ENTER), (2, "lee", ENTER)]}
    assert Audience.objects.get().last_sequence == 2


def test_an_event_keeps_the_nanosecond_and_the_call_it_came_with(install: Install) -> None:
    receive(install, single(message(transition(at="2026-03-02T09:15:00.000000007Z"))))
    event, receipt = Event.objects.get(), Receipt.objects.get()
    assert event.occurred_ns == AT_NS + 7
    assert (event.receipt_id, event.received_at, event.forced) == (receipt.pk, receipt.received_at, False)


def test_a_repeated_call_is_stored_again_and_left_to_the_fold(install: Install) -> None:
    for _ in range(2):
        receive(install, body(message()))
    assert log(install) == {"lytics_gold_club": [(1, "kim", ENTER), (2, "kim", ENTER)]}


AWKWARD = [
    *("{", "}", "{}", '"', '""', "\\", '\\"', "\\\\", ",", "a,b", "null", "NULL", "Null", "a b", "a\nb", "a\r\tb"),
    *(
        "'",
        "it's",
        "$1",
        "%s",
        "%(x)s",
        "💛",
        "é",
        "e\u0301",
        "\x7f\x1b\x01",
        "9007199254740993",
        "(1,2)",
        "[1]",
        "\ufeffx",
    ),
]


def test_awkward_identifiers_slugs_and_ids_are_stored_exactly(install: Install, settings: Any) -> None:
    settings.PLACEHOLDER_IDENTIFIERS = frozenset()  # NULL is a word of PostgreSQL's arrays too
    receive(install, single(message(who=AWKWARD)))
    assert list(Event.objects.order_by("sequence").values_list("identifier", flat=True)) == AWKWARD
    receive(install, body(*(enter(f"{text}·id", f"{text}·slug") for text in AWKWARD)))
    made = Audience.objects.exclude(slug="gold_club").order_by("pk").values_list("segment_id", "slug")
    assert sorted(made) == sorted((f"{text}·id", f"{text}·slug") for text in AWKWARD)


def test_placeholders_are_parked_by_the_list_in_the_settings(install: Install, settings: Any) -> None:
    receive(install, body(*(message(who=who) for who in ("kim", "NULL", "guest", 0))))
    assert list(Event.objects.values_list("identifier", flat=True)) == ["kim", "guest"]
    settings.PLACEHOLDER_IDENTIFIERS = frozenset({"guest"})
    receive(install, body(*(message(who=who) for who in ("null", "Guest"))))
    assert list(Event.objects.values_list("identifier", flat=True)) == ["kim", "guest", "null"]
    assert set(Parked.objects.values_list("reason", flat=True)) == {reasons.PLACEHOLDER}
    assert Parked.objects.count() == 3


def test_the_longest_names_fit(install: Install) -> None:
    longest = "é" * 250
    receive(install, body(enter(longest, longest, "i" * 256), enter(None, "z" * 500), enter("x" * 500, "z" * 500)))
    receive(install, body(enter("y" * 500, "Z" * 500)))
    assert Receipt.objects.filter(parked=0).count() == 2
    assert Audience.objects.count() == 3
    receive(install, single(message(meta={"subscription_id": "j" * 9000})))
    assert Receipt.objects.latest("pk").job == "j" * 500


def test_a_call_that_can_not_be_stored_whole_is_not_stored_at_all(install: Install) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'disk full'; END $$;"
            "CREATE TRIGGER full_disk BEFORE INSERT ON audiences_event FOR EACH ROW EXECUTE FUNCTION full_disk()"
        )
    with pytest.raises(DatabaseError, match="disk full"):
        receive(install, body(message(), "oops"))
    for table in (Receipt, Parked, Audience, Lane, Event):
        assert not table.objects.exists(), table


def test_an_audience_that_one_call_names_in_two_ways_gets_all_of_its_events(install: Install) -> None:
    receive(install, body(message()))
    told = receive(install, body(message(who="lee"), message(transition(slug=None), who="max")))
    assert told.queued == 2
    assert sorted(Event.objects.values_list("sequence", "identifier")) == [(1, "kim"), (2, "lee"), (3, "max")]


def test_an_event_that_finds_no_audience_is_an_error_and_not_a_gap(install: Install) -> None:
    receive(install, body(message()))
    facts = {Audience.objects.get().pk: [_fact("kim")], 0: [_fact("lee")]}
    with pytest.raises(RuntimeError, match="2 events to store, 0 stored"):
        ingest.append(facts, received_at=Receipt.objects.get().received_at)
    assert Event.objects.count() == 1


def _fact(who: str) -> Fact:
    return Fact("s1", "gold_club", who, ENTER, AT_NS)


# --- The receipt ----------------------------------------------------------------------------------------------


def test_nothing_is_counted_or_sorted_again_for_each_event(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    receive(install, body(enter("s1", "gold_club", "kim")))
    plans: list[Any] = []

    def read(row: Any) -> Stored:
        plans.append(row[0][0]["Plan"])
        return Stored([1], 40)

    explained = replace(ingest._STORE, text=f"EXPLAIN (ANALYZE, FORMAT JSON) {ingest._STORE.text}", make=read)
    monkeypatch.setattr(ingest, "_STORE", explained)
    receipt = NewReceipt(now(), "", "", 9, 40, 40, 0, 0, "{}")
    facts = {Audience.objects.get().pk: [_fact(f"{number}") for number in range(40)]}
    ingest.append(facts, received_at=now(), install_id=install.pk, receipt=receipt)
    nodes = plans
    for node in nodes:
        nodes.extend(node.get("Plans", []))
    assert max(node["Actual Rows"] for node in nodes) == 40
    assert {node["Actual Loops"] for node in nodes if node["Node Type"] in ("Aggregate", "Sort", "ModifyTable")} == {1}


def test_the_receipt_counts_the_results_of_a_call(install: Install) -> None:
    raw = body(message(who=["a", "b", ""]), "oops", 5, message(transition("paused")))
    received = receive(install, raw, source="192.0.2.7")
    receipt = Receipt.objects.get()
    assert (receipt.messages, receipt.queued, receipt.parked, receipt.skipped) == (4, 2, 3, 1)
    assert (receipt.job, receipt.bytes, receipt.source) == ("job-7", len(raw), "192.0.2.7")
    assert receipt.parked_reasons == {reasons.NOT_A_MESSAGE: 2, reasons.UNKNOWN_EVENT: 1}
    assert (received.received, received.queued, received.parked, received.skipped) == (4, 2, 3, 1)
    assert received.parked_reasons == receipt.parked_reasons


@pytest.mark.parametrize(
    ("raw", "verdict"),
    [(b"[]", "empty"), (b"junk", "parked"), (body(message()), "queued"), (body(message(), 1), "partly parked")],
)
def test_the_receipt_has_a_one_word_result(install: Install, raw: bytes, verdict: str) -> None:
    receive(install, raw)
    assert Receipt.objects.get().verdict == verdict


# --- Parked ---------------------------------------------------------------------------------------------------


def test_a_parked_item_keeps_no_more_of_a_profile_than_it_needs(install: Install) -> None:
    one = message(transition("paused"))
    one["data"] |= {"email": "kim@example.com", "orders": [1]}
    receive(install, single(one))
    parked = Parked.objects.get()
    assert raw_of(parked) == {**one, "data": {**one["data"], "email": None, "orders": None}}
    assert (parked.reason, parked.detail) == (reasons.UNKNOWN_EVENT, "the event is 'paused'")
    assert parked.receipt == Receipt.objects.get()


def test_without_an_identifier_all_of_a_message_is_kept_because_any_field_may_be_meant(install: Install) -> None:
    one = message(field="user_id")
    one["data"]["email"] = "kim@example.com"
    receive(install, single(one))
    parked = Parked.objects.get()
    assert raw_of(parked) == one
    assert "kim" not in parked.detail


def test_parked_items_are_not_readable_in_the_database(install: Install) -> None:
    receive(install, body(message(field="user_id", who="kim-4711")))
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM audiences_parked")
        row = cursor.fetchone()
    assert row is not None
    assert "kim-4711" not in repr([bytes(value) if isinstance(value, memoryview) else value for value in row])


def test_a_reason_with_characters_that_postgresql_rejects_is_still_parked(install: Install) -> None:
    receive(install, single(message(transition("pau\0sed"), who=None)))
    one = message(who=None)
    one["data"]["na\0me"] = 1
    receive(install, single(one))
    assert set(Parked.objects.values_list("reason", flat=True)) == {
        reasons.UNKNOWN_EVENT,
        reasons.UNUSABLE_IDENTIFIER,
    }


def test_many_parked_items_are_all_there(install: Install) -> None:
    receive(install, body(*range(10)))
    assert [raw_of(parked) for parked in Parked.objects.order_by("pk")] == list(range(10))


# --- Audiences ------------------------------------------------------------------------------------------------


def test_a_new_audience_has_a_lane(install: Install) -> None:
    receive(install, body(message()))
    audience = Audience.objects.get()
    assert (audience.segment_id, audience.slug, audience.latest_slug) == ("s1", "gold_club", "gold_club")
    assert Lane.objects.get().audience == audience


def test_two_segments_that_want_one_odp_id_get_two(install: Install) -> None:
    both = (
        transition(segment="c3d4e5f6a7", slug="Gold-Club.2026"),
        transition(segment="0f1e2d3c4b", slug="gold_club_2026"),
    )
    receive(install, single(message(*both)))
    receive(install, single(message(*both)))
    made = dict(Audience.objects.values_list("segment_id", "odp_id"))
    assert made == {"c3d4e5f6a7": "lytics_gold_club_2026", "0f1e2d3c4b": "lytics_gold_club_2026_0f1e2d"}
    assert {odp_id: len(events) for odp_id, events in log(install).items()} == dict.fromkeys(made.values(), 2)


def test_two_installs_may_have_one_odp_id_each(install: Install) -> None:
    other = Install.objects.create(name="Other", odp_api_key="k")
    for each in (install, other):
        receive(each, body(message()))
    assert list(Audience.objects.values_list("odp_id", flat=True)) == ["lytics_gold_club"] * 2


def test_a_slug_edited_in_lytics_is_noted_and_changes_nothing_else(install: Install) -> None:
    receive(install, body(enter("s1", "gold_club")))
    receive(install, body(enter("s1", "platinum")))
    audience = Audience.objects.get()
    assert (audience.odp_id, audience.slug, audience.latest_slug) == ("lytics_gold_club", "gold_club", "platinum")
    assert len(log(install)["lytics_gold_club"]) == 2


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_of_the_slugs_in_one_call_that_of_the_latest_transition_is_noted(
    install: Install, order: tuple[int, ...]
) -> None:
    told = [message(transition(slug=f"slug_{day}", at=f"2026-03-0{day + 1}T00:00:00Z")) for day in range(3)]
    receive(install, body(*(told[day] for day in order)))
    assert Audience.objects.get().latest_slug == "slug_2"
    receive(install, body(*(told[day] for day in order)))
    assert Audience.objects.get().latest_slug == "slug_2"


def test_an_id_alone_is_enough_once_the_slug_is_known(install: Install) -> None:
    receive(install, body(enter("s1", "gold_club", "kim")))
    receive(install, body(enter("s1", None, "lee")))
    assert log(install) == {"lytics_gold_club": [(1, "kim", ENTER), (2, "lee", ENTER)]}
    assert Audience.objects.get().latest_slug == "gold_club"


def test_an_id_is_enough_when_the_same_call_has_the_slug_later(install: Install) -> None:
    receive(install, body(enter("s1", None, "kim"), enter("s1", "gold_club", "lee")))
    assert log(install) == {"lytics_gold_club": [(1, "kim", ENTER), (2, "lee", ENTER)]}


def test_an_unknown_id_without_a_slug_is_parked_per_customer(install: Install) -> None:
    leave = message(transition("exit", segment="s9", slug=None, at="1999-12-31T23:59:59.000000001-00:30"), who="lee")
    receive(install, body(enter("s9", None, "a", "b"), message(), leave))
    assert log(install) == {"lytics_gold_club": [(1, "kim", ENTER)]}
    items = list(Parked.objects.order_by("pk"))
    assert [item.reason for item in items] == [reasons.UNKNOWN_SLUG] * 3
    assert raw_of(items[2])["data"] == {
        "_id": "lee",
        "segment_events": [{"id": "s9", "event": "exit", "exit": "2000-01-01T00:29:59.000000001Z"}],
    }


def test_a_slug_alone_makes_an_audience_that_its_id_later_adopts(install: Install) -> None:
    receive(install, body(enter(None, "gold_club", "kim")))
    assert Audience.objects.get().segment_id == "slug:gold_club"
    receive(install, body(enter("s1", "gold_club", "lee")))
    receive(install, body(enter(None, "gold_club", "mo"), enter("s1", None, "bo")))
    assert Audience.objects.get().segment_id == "s1"
    assert [who for _, who, _ in log(install)["lytics_gold_club"]] == ["kim", "lee", "mo", "bo"]


@pytest.mark.parametrize("flip", [False, True])
def test_an_audience_named_by_id_and_by_slug_in_one_call_is_one(install: Install, flip: bool) -> None:
    both = [enter("s1", "gold_club", "kim"), enter(None, "gold_club", "lee")]
    receive(install, body(*(both[::-1] if flip else both)))
    audience = Audience.objects.get()
    assert (audience.segment_id, audience.last_sequence) == ("s1", 2)


def test_an_adoption_and_the_slug_alone_in_one_call_are_one_audience(install: Install) -> None:
    receive(install, body(enter(None, "gold_club", "kim")))
    receive(install, body(enter(None, "gold_club", "lee"), enter("s1", "gold_club", "mo"), enter("s1", None, "bo")))
    assert Audience.objects.get().segment_id == "s1"
    assert [who for _, who, _ in log(install)["lytics_gold_club"]] == ["kim", "lee", "mo", "bo"]


def test_only_one_of_two_ids_adopts_a_slug(install: Install) -> None:
    receive(install, body(enter(None, "gold_club", "kim")))
    receive(install, body(enter("s1a2b3c4", "gold_club", "lee"), enter("s2a2b3c4", "gold_club", "mo")))
    made = dict(Audience.objects.values_list("segment_id", "odp_id"))
    assert made == {"s1a2b3c4": "lytics_gold_club", "s2a2b3c4": "lytics_gold_club_s2a2b3"}


def test_a_slug_alone_means_the_audience_that_has_it_now(install: Install) -> None:
    receive(install, body(enter("s1", "gold_club"), enter("s2", "basket")))
    receive(install, body(enter("s1", "platinum")))
    receive(install, body(enter(None, "platinum", "lee")))
    assert [who for _, who, _ in log(install)["lytics_gold_club"]] == ["kim", "kim", "lee"]


# --- At once --------------------------------------------------------------------------------------------------


@at_once
def test_numbers_stay_gapless_with_twenty_writers_over_overlapping_audiences(install: Install) -> None:
    audiences = [f"s{number}" for number in range(6)]
    writers, calls = 20, 4
    receive(install, body(*(enter(segment, segment, "first") for segment in audiences)))

    def write(writer: int) -> Counter[str]:
        dice, told = random.Random(writer), Counter[str]()
        for call in range(calls):
            chosen = dice.choices(audiences, k=30)
            told.update(chosen)
            receive(install, body(*(enter(one, one, f"{writer}.{call}.{place}") for place, one in enumerate(chosen))))
        return told

    futures = start(*(lambda writer=writer: write(writer) for writer in range(writers)))
    seen = 0
    while not all(future.done() for future in futures):
        # Numbers become visible in commit order: a concurrent reader never sees a gap.
        for row in Event.objects.values("audience").annotate(events=Count("sequence"), last=Max("sequence")):
            assert row["events"] == row["last"]
            seen += 1
    told = sum((future.result() for future in futures), Counter(audiences))
    assert seen
    for audience in Audience.objects.all():
        numbers = list(Event.objects.filter(audience=audience).order_by("sequence").values_list("sequence", flat=True))
        assert numbers == list(range(1, told[audience.segment_id] + 1))
        assert audience.last_sequence == len(numbers)
    stored = Event.objects.values_list("audience", "identifier")
    assert len(stored) == len(set(stored)) == writers * calls * 30 + len(audiences)


@at_once
def test_a_rolled_back_call_leaves_no_gap_in_the_numbers(install: Install) -> None:
    receive(install, body(message()))
    with transaction.atomic():
        receive(install, body(message(who="gone")))
        [other] = start(lambda: receive(install, body(message(who="lee"))))
        eventually(waiting_for_a_lock)
        transaction.set_rollback(True)
    other.result(PATIENCE)
    assert log(install) == {"lytics_gold_club": [(1, "kim", ENTER), (2, "lee", ENTER)]}


def test_news_of_known_audiences_is_stored_in_one_step(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    receive(install, body(enter("s1", "gold_club"), enter("s2", "basket")))
    monkeypatch.setattr(ingest, "_record", None)
    assert receive(install, body(enter("s1", "gold_club"), enter("s2", None))).queued == 2


@at_once
def test_calls_that_share_audiences_lock_them_in_one_order(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any plan of PostgreSQL: here it scans the table, where the rows are in reverse order."""
    monkeypatch.setitem(
        connection.settings_dict["OPTIONS"], "options", "-c enable_indexscan=off -c enable_bitmapscan=off"
    )
    for known in (enter("s2", "basket"), enter("s1", "gold_club"), enter("s2", "basket")):
        receive(install, body(known))
    first, second = Audience.objects.order_by("pk")
    forth, back = body(enter("s1", None), enter("s2", None)), body(enter("s2", None), enter("s1", None))
    with transaction.atomic():
        Audience.objects.select_for_update(no_key=True).get(pk=first.pk)
        calls = start(lambda: receive(install, forth), lambda: receive(install, back))
        eventually(lambda: waiting_for_a_lock() == 2)
        # Neither holds the second one while it waits for the first.
        Audience.objects.select_for_update(no_key=True, nowait=True).get(pk=second.pk)
    for call in calls:
        call.result(PATIENCE)
    assert [*Audience.objects.order_by("pk").values_list("last_sequence", flat=True)] == [4, 3]


@at_once
def test_appends_lock_audiences_in_one_order(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a resend, a release and a call with a new audience do, with the audiences in any order."""
    monkeypatch.setitem(
        connection.settings_dict["OPTIONS"], "options", "-c enable_indexscan=off -c enable_bitmapscan=off"
    )
    for known in (enter("s2", "basket"), enter("s1", "gold_club"), enter("s2", "basket")):
        receive(install, body(known))
    first, second = Audience.objects.order_by("pk")
    fact = Fact("", "", "kim", ENTER, 1)

    def append(*audiences: Audience) -> None:
        ingest.append({audience.pk: [fact] for audience in audiences}, received_at=now())

    with transaction.atomic():
        Audience.objects.select_for_update(no_key=True).get(pk=first.pk)
        calls = start(lambda: append(first, second), lambda: append(second, first))
        eventually(lambda: waiting_for_a_lock() == 2)
        Audience.objects.select_for_update(no_key=True, nowait=True).get(pk=second.pk)
    for call in calls:
        call.result(PATIENCE)
    assert [*Audience.objects.order_by("pk").values_list("last_sequence", flat=True)] == [4, 3]


@at_once
def test_concurrent_calls_and_writers_of_foreign_keys_do_not_deadlock(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checked foreign key, such as those of Parked and Resend, takes a share lock on its audience. A call that sees
    an older version of a row it has locked would wait for the transaction that waits for it."""
    for limit in ("LOCK_MILLISECONDS", "SHORT_LOCK_MILLISECONDS"):  # no call gives up on a slow machine
        monkeypatch.setattr(ingest, limit, int(PATIENCE * 1000))
    slugs = [f"s{number}" for number in range(12)]
    receive(install, body(*(enter(slug, slug) for slug in slugs)))
    begin, over = Gate(14).after(lambda: None), threading.Event()

    def call(seed: int) -> None:
        dice = random.Random(seed)
        begin()
        try:
            for _ in range(40):
                receive(install, body(*(enter(slug, slug) for slug in dice.sample(slugs, 6))))
        finally:
            over.set()

    def write_runs() -> None:
        begin()
        while not over.is_set():
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SELECT FROM audiences_audience WHERE id %% 3 = %s FOR KEY SHARE", [random.randrange(3)])
                cursor.execute("SELECT pg_sleep(0.003)")

    together(*(lambda seed=seed: call(seed) for seed in range(12)), write_runs, write_runs)
    assert sum(Audience.objects.values_list("last_sequence", flat=True)) == Event.objects.count() == 12 * (1 + 40 * 6)


@at_once
def test_two_calls_at_once_make_one_audience(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    # Both transactions have searched and found nothing before either continues.
    monkeypatch.setattr(audience_lookup, "find", Gate(2).after(audience_lookup.find))
    together(*(lambda who=who: receive(install, body(message(who=who))) for who in ("kim", "lee")))
    assert Audience.objects.get().last_sequence == 2
    assert Lane.objects.count() == 1


@at_once
def test_two_calls_at_once_with_slugs_that_fold_to_one_id_get_two(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audience_lookup, "find", Gate(2).after(audience_lookup.find))
    wanted = (("aaaaaaaa", "Gold-Club"), ("bbbbbbbb", "gold.club"))
    together(*(lambda pair=pair: receive(install, body(enter(*pair))) for pair in wanted))
    made = dict(Audience.objects.values_list("segment_id", "odp_id"))
    assert set(made) == {"aaaaaaaa", "bbbbbbbb"}
    assert "lytics_gold_club" in made.values()
    assert set(made.values()) & {"lytics_gold_club_aaaaaa", "lytics_gold_club_bbbbbb"}


@at_once
def test_an_id_and_a_slug_alone_at_once_make_one_audience(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audience_lookup, "find", Gate(2).after(audience_lookup.find))
    together(*(lambda segment=segment: receive(install, body(enter(segment, "gold_club"))) for segment in ("s1", None)))
    audience = Audience.objects.get()
    assert (audience.segment_id, audience.last_sequence) == ("s1", 2)


@at_once
def test_an_adoption_locks_in_the_common_order(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adopted audience has the higher id: were it locked first, the other call would wait for it with ours held."""
    receive(install, body(enter("s1", "gold_club"), enter(None, "basket")))
    adopting, append = threading.Event(), ingest.append

    def wait_for_the_other(*args: Any, **kwargs: Any) -> int | None:
        if threading.current_thread() is adopter:
            adopting.set()
            eventually(waiting_for_a_lock)
        return append(*args, **kwargs)

    monkeypatch.setattr(ingest, "append", wait_for_the_other)
    problems: list[Exception] = []

    def adopt() -> None:
        try:
            receive(install, body(enter("s1", "gold_club", "lee"), enter("s2", "basket", "lee")))
        except Exception as problem:  # noqa: BLE001 — the test shows any error
            problems.append(problem)
        finally:
            connection.close()

    adopter = threading.Thread(target=adopt)
    adopter.start()
    adopting.wait(PATIENCE)
    receive(install, body(enter("s1", "gold_club", "mo"), enter(None, "basket", "mo")))
    adopter.join(PATIENCE)
    assert problems == []
    assert sorted(Audience.objects.values_list("segment_id", "last_sequence")) == [("s1", 3), ("s2", 3)]


# --- The wake-up ----------------------------------------------------------------------------------------------


@at_once
def test_the_workers_are_woken_after_the_commit_and_for_events_only(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[int] = []
    monkeypatch.setattr(ingest, "wake", woken.append)
    receive(install, b"junk")
    with transaction.atomic():
        receive(install, body(message()))
        transaction.set_rollback(True)
    assert woken == []
    with transaction.atomic():
        receive(install, body(message()))
        assert woken == []
    assert woken == [install.pk]


@at_once
def test_a_wake_up_that_fails_does_not_fail_the_call(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more_threads(_: int) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(ingest, "wake", no_more_threads)
    assert receive(install, body(message())).queued == 1


# --- Long lanes -----------------------------------------------------------------------------------------------


def test_ten_thousand_events_of_one_call_are_all_there(install: Install) -> None:
    receive(install, body(*(message(who=f"c{number}") for number in range(10_000))))
    events = Event.objects.order_by("sequence")
    assert list(events.values_list("identifier", flat=True)) == [f"c{number}" for number in range(10_000)]
    assert not events.exclude(audience__last_sequence__gte=F("sequence")).exists()
    assert events.filter(occurred_ns=AT_NS).count() == 10_000
    assert AT_NS % SECOND == 0


@pytest.mark.parametrize("who", [None, "", True, {"a": 1}, []])
def test_an_item_with_an_unusable_identifier_can_be_released_with_another_field(install: Install, who: Any) -> None:
    one = message(who=who)
    one["data"]["other"] = "kim"
    receive(install, body(one))
    item = Parked.objects.get()
    assert item.reason == reasons.UNUSABLE_IDENTIFIER
    Install.objects.update(identifier_field="other")
    assert parked_items.release([item.pk], by="me") == (1, 0)
    assert Event.objects.get().identifier == "kim"


@pytest.mark.parametrize(
    "word", ["null", "[object Object]", "[Object  object]", "<nil>", "(not set)", "\\N", "Infinity"]
)
def test_the_usual_placeholders_are_parked_by_default(install: Install, word: str) -> None:
    receive(install, body(message(who=word), message(who=[word, "kim"])))
    assert list(Event.objects.values_list("identifier", flat=True)) == ["kim"]
    assert set(Parked.objects.values_list("reason", flat=True)) == {reasons.PLACEHOLDER}
