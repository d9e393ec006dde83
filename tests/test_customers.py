"""Finding a customer: each event's status is true, found quickly, and shown with the permission."""

import html
import json
import random
import re
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.timezone import now

from audiences.admin import customer
from audiences.delivery import backoff, holds, leases, reading, request_records, settling
from audiences.delivery.fold import fold
from audiences.delivery.leases import Ledger, Result
from audiences.insight import customer_records, customers, search_index, state
from audiences.insight.customers import End, EventStatus, customer_history
from audiences.models import Audience, Delivery, Event, Install, Membership, Parked, Run
from audiences.operations import parked_items
from audiences.receiving import ingest
from lytics.facts import Kind
from odp.outcomes import Answer, Outcome
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import (
    a_log,
    block_all,
    claim,
    deliveries,
    drain_all,
    enter,
    happen,
    lane_of,
    make_audience,
    make_install,
)
from tests.people import someone

DELIVERED = Answer(Outcome.DELIVERED, status=202)
REFUSED = Answer(Outcome.REJECTED, "400: not her", 400)
BUSY = Answer(Outcome.RETRY_LATER, "503: busy", 503)
PAGE = "/admin/find-customer/"


@pytest.fixture
def shop(db: None) -> Install:
    return make_install()


@pytest.fixture
def gold(shop: Install) -> Audience:
    return make_audience(shop)


def deliver(lease: leases.Lease, *, refuse: bool = False, stop: bool = False) -> None:
    """As a worker does: Kim's change goes in the last request, which ODP refuses, or doesn't answer."""
    entries, ledger = reading.read(lease)
    (span,) = lease.spans
    events = entries[span.audience_id]
    folded = fold(events, ledger[span.audience_id])
    result = Result(span, events=len(events), sent=bool(folded.send))
    delivery, answer = None, None
    for mine in (False, True):
        part = [entry for entry in folded.send if (entry.identifier == "kim") is mine]
        if not part:
            continue
        if delivery is not None:
            request_records.close_delivery(delivery, DELIVERED)
        of, sent = {span.audience_id: len(events)}, {span.audience_id: len(part)}
        delivery = request_records.open_delivery(lease, endpoint="/v3/profiles", items=1, size=2, sent=sent, of=of)
        answer = ((stop and BUSY) or (refuse and REFUSED) or DELIVERED) if mine else DELIVERED
        result.complete = answer is not BUSY
        if answer is DELIVERED:
            result.accepted += part
        elif answer is REFUSED:
            result.rejected += [(entry, "not her") for entry in part]
    if result.complete:
        result.accepted.extend(folded.unchanged)
    settling.settle(lease, [result], ledger, delivery_id=delivery, answer=answer)


def step(install: Install, capacity: int = 500, **how: bool) -> None:
    deliver(claim(install, capacity=capacity), **how)


def statuses(identifier: str = "kim") -> list[EventStatus]:
    """In the order in which they were received."""
    return list(reversed(customer_history(identifier).statuses))


def ends(identifier: str = "kim") -> list[End]:
    return [status.end for status in statuses(identifier)]


def words(identifier: str = "kim") -> list[tuple[str, str]]:
    told = [state.of_event(status) for status in statuses(identifier)]
    return [(one.word, one.why) for one in told]


# --- what became of an event ----------------------------------------------------------------------------------


def test_a_waiting_event_shows_its_cause(shop: Install, gold: Audience) -> None:
    enter(gold, "lee", "kim")
    assert words() == [("waiting", "for a worker; events before it: 1")]
    holds.pause(lane_of(gold), by="sam", reason="campaign moved")
    assert words() == [("waiting", "the audience is paused: by sam: campaign moved; events before it: 1")]
    holds.resume(lane_of(gold))
    backoff.apply(shop, Answer(Outcome.RETRY_LATER, "500: boom", 500, retry_after=600))
    ((word, why),) = words()
    assert word == "waiting"
    assert "held back: install on hold: 500: boom" in why
    assert "next try at" in why


def test_a_waiting_event_says_how_the_last_try_ended(shop: Install, gold: Audience) -> None:
    enter(gold, "kim")
    step(shop, stop=True)
    assert words() == [("waiting", "for a worker; last try: retry later")]
    block_all(claim(shop), "wrong type")
    assert words() == [("waiting", "the audience is blocked: wrong type; last try: retry later")]


def test_an_event_under_way_is_being_sent(shop: Install, gold: Audience) -> None:
    enter(gold, "kim")
    lease = claim(shop)
    request_records.open_delivery(lease, endpoint="/", items=1, size=2, sent={gold.pk: 1}, of={gold.pk: 1})
    assert ends() == [End.SENDING]


def test_partial_acceptance_by_odp_is_shown(shop: Install, gold: Audience) -> None:
    enter(gold, "lee", "kim")
    step(shop, stop=True)
    assert words("lee") == [("waiting", "ODP accepted it; the rest of its request is tried again")]
    assert ends() == [End.WAITING]
    step(shop)
    (lee,) = statuses("lee")
    assert (lee.end, [run.delivery_id for run in lee.attempts][-1]) == (
        End.DELIVERED,
        Delivery.objects.earliest("pk").pk,
    )


def test_a_delivered_event_names_the_delivery_that_took_it(shop: Install, gold: Audience) -> None:
    enter(gold, "lee")
    step(shop)
    enter(gold, "kim")
    step(shop, stop=True)
    step(shop)
    (status,) = statuses()
    assert (status.end, status.holds) == (End.DELIVERED, True)
    assert [run.delivery.outcome for run in status.attempts if run.delivery] == ["delivered"]
    assert len(deliveries()) == 3


def test_a_folded_event_that_an_earlier_request_may_have_brought_says_so(shop: Install, gold: Audience) -> None:
    happen(gold, ("lee", "enter", 1), ("kim", "enter", 1))
    step(shop, stop=True)
    happen(gold, ("lee", "exit", 2), ("kim", "exit", 2))
    step(shop)
    for who, deliveries_named in (("lee", 1), ("kim", 1)):
        first, second = statuses(who)
        assert (first.end, second.end, len(first.attempts)) == (End.FOLDED, End.DELIVERED, deliveries_named)
        assert words(who)[0][1].endswith("an earlier request that ended early may have brought it")


def test_an_attempt_that_ended_before_an_event_is_not_its_attempt(shop: Install, gold: Audience) -> None:
    enter(gold, "lee", "kim")
    deliver(claim(shop, capacity=1))
    assert words() == [("waiting", "for a worker")]
    enter(gold, "max")
    step(shop, capacity=1, stop=True)
    assert statuses()[0].attempts != ()
    assert statuses("max")[0].attempts == ()


@pytest.mark.parametrize("at_once", [True, False])
def test_a_folded_event_names_the_newer_event_that_decided(shop: Install, gold: Audience, at_once: bool) -> None:
    for what, at in (("exit", 9_000_000_000), ("enter", 5_000_000_000)):
        happen(gold, ("kim", what, at))
        if not at_once:
            step(shop)
    if at_once:
        step(shop)
    first, second = statuses()
    assert (first.end, second.end, second.decided_by) == (End.DELIVERED, End.FOLDED, first.event)
    assert words()[1] == ("folded", "replaced by something newer: exit of 1970-01-01 00:00:09 UTC (event 1)")


def test_a_tie_goes_to_the_exit_and_a_repeat_changes_nothing(shop: Install, gold: Audience) -> None:
    happen(gold, ("kim", "exit", 9), ("kim", "enter", 9))
    step(shop)
    happen(gold, ("kim", "exit", 9))
    step(shop)
    told = words()
    assert [word for word, _ in told] == ["delivered", "folded", "folded"]
    assert told[1][1].startswith("an exit at the same moment wins")
    assert told[2][1] == "the same as event 1"


def test_a_change_of_a_member_changes_nothing(shop: Install, gold: Audience) -> None:
    happen(gold, ("kim", "enter", 1))
    step(shop)
    happen(gold, ("kim", "change", 2))
    step(shop)
    assert words()[1] == ("folded", "nothing new: already a member")
    assert [status.holds for status in statuses()] == [False, True]


def test_a_rejected_event_is_parked_until_a_person_releases_it(shop: Install, gold: Audience) -> None:
    enter(gold, "kim")
    step(shop, refuse=True)
    assert words() == [("parked", "ODP rejected it: not her")]
    assert customer_history("kim").memberships[0].parked == Parked.objects.get()
    parked_items.release([Parked.objects.get().pk], by="sam")
    assert customer_history("kim").memberships[0].parked is None
    step(shop)
    told = words()
    assert [word for word, _ in told] == ["released", "delivered"]
    assert "by sam" in told[0][1]


def test_a_rejected_event_is_superseded_when_odp_accepts_a_newer_one(shop: Install, gold: Audience) -> None:
    happen(gold, ("kim", "enter", 1))
    step(shop, refuse=True)
    happen(gold, ("kim", "exit", 2))
    step(shop)
    assert [word for word, _ in words()] == ["superseded", "delivered"]


@pytest.mark.django_db(transaction=True)
def test_a_second_rejection_leaves_the_first_rejected_and_older_events_delivered(shop: Install, gold: Audience) -> None:
    """The open row in Parked goes over to the newer event, so the first has none with its number."""
    happen(gold, ("kim", "enter", 1))
    step(shop)
    for at in (2, 3):
        happen(gold, ("kim", "exit", at))
        step(shop, refuse=True)
    parked_items.discard([Parked.objects.get().pk], by="sam")
    told = words()
    assert [word for word, _ in told] == ["delivered", "discarded", "discarded"]
    assert "a newer rejection, of event 3" in told[1][1]


@pytest.mark.django_db(transaction=True)
def test_an_event_has_the_same_status_on_an_older_page(
    shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older page didn't read the events that folded, or were rejected after, its own."""
    happen(gold, ("kim", "exit", 1), ("kim", "enter", 2))
    step(shop)
    happen(gold, ("kim", "exit", 3))
    step(shop, refuse=True)
    monkeypatch.setattr(customers, "SHOWN", 1)
    told, place = [], None
    for _ in range(3):
        page = customer_history("kim", before=place)
        place = page.older
        told.append(state.of_event(page.statuses[0]).word)
    assert told == ["parked", "delivered", "folded"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("seed", range(12))
def test_the_shown_statuses_match_what_happened(
    seed: int, shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any events in any runs with failures between them: events shown as delivered were accepted."""
    chance = random.Random(seed)
    accepted: set[int] = set()

    write = settling._write_ledger

    def note(results: list[Result], ledger: Ledger) -> None:
        accepted.update(entry.sequence for result in results for entry in result.accepted)
        write(results, ledger)

    monkeypatch.setattr(settling, "_write_ledger", note)
    longer = 0
    for _ in range(15):
        for _ in range(chance.randint(1, 8)):
            who, what = chance.choice(["kim", "lee", "max"]), chance.choice(["enter", "exit"])
            happen(gold, (who, what, chance.randint(1, 6)), forced=chance.random() < 0.2)
        for _ in range(chance.randint(0, 3)):
            if waiting(gold):
                lease = claim(shop, capacity=max(longer, chance.randint(1, 6)))
                deliver(lease, stop=chance.random() < 0.3)
                # The next claim begins at the same event and is at least as long: requests don't shrink.
                longer = lease.spans[0].last - lease.spans[0].first + 1 if waiting(gold) else 0
    while waiting(gold):
        step(shop)
    for who in ("kim", "lee", "max"):
        found = {status.event.sequence: status for status in statuses(who)}
        assert {status.end for status in found.values()} <= {End.DELIVERED, End.FOLDED}
        said = {number for number, status in found.items() if status.end is End.DELIVERED}
        perhaps = {number for number, status in found.items() if status.end is End.FOLDED and status.attempts}
        same = {
            status.decided_by.sequence for number, status in found.items() if number in perhaps and status.decided_by
        }
        mine = set(found) & accepted
        assert mine <= said | perhaps
        assert said - same <= mine
        held = Membership.objects.get(identifier=who, audience=gold)
        (holds,) = [status.event for status in found.values() if status.holds]
        assert (holds.kind != Kind.EXIT) is held.is_member
        # A forced event is sent with the ledger's time when that is newer.
        assert holds.occurred_ns == held.occurred_ns or (holds.forced and holds.occurred_ns < held.occurred_ns)


def waiting(audience: Audience) -> int:
    return Audience.objects.get(pk=audience.pk).last_sequence - lane_of(audience).delivered_sequence


def test_statuses_of_several_audiences_and_installs_are_kept_apart(shop: Install, gold: Audience) -> None:
    other = make_install(name="Other")
    silver = make_audience(other)
    enter(gold, "kim")
    enter(silver, "kim")
    step(other)
    found = customer_history("kim")
    assert {status.event.audience: status.end for status in found.statuses} == {
        gold: End.WAITING,
        silver: End.DELIVERED,
    }
    assert [membership.audience for membership in found.memberships] == [silver, gold]
    assert [status.event.audience for status in customer_history("kim", install_id=other.pk).statuses] == [silver]


def test_events_of_other_installs_do_not_count_against_the_events_that_are_read(
    shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(customer_records, "READ", 2)
    other = make_audience(make_install(name="Other"))
    happen(gold, ("kim", "enter", 1), ("kim", "exit", 2))
    happen(other, ("kim", "enter", 3), ("kim", "exit", 4))
    (membership,) = customer_history("kim", install_id=shop.pk).memberships
    assert (membership.audience, membership.waiting) == (gold, 2)


def test_a_search_reads_the_audiences_that_have_the_customer_and_counts_the_others(
    shop: Install, gold: Audience
) -> None:
    """An installation has many thousands of audiences, and loading them all took seconds."""
    silver = make_audience(shop, "silver")
    enter(gold, "kim")
    found = customer_history("kim")
    assert [*found.audiences.values()] == [gold]
    assert found.totals == {shop.pk: 2}
    assert {*customer_history("kim", ask=shop.pk).audiences.values()} == {gold, silver}
    assert customer_history("nobody").audiences == {}


# --- quickly found --------------------------------------------------------------------------------------------


def plan_of_the_search() -> dict[str, Any]:
    """What PostgreSQL does for the queries of a search that read the log, and how much of it all of them read."""
    with CaptureQueriesContext(connection) as seen:
        assert len(customer_history("kim").statuses) == 4
    searches = [one["sql"] for one in seen.captured_queries if 'FROM "audiences_event"' in one["sql"]]
    assert 1 <= len(searches) <= 2
    names, share = [], 0.0
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_relation_size('audiences_event_1') / current_setting('block_size')::int")
        (blocks,) = cursor.fetchone() or (0,)
        for search in searches:
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {search}")
            (told,) = cursor.fetchone() or ([],)
            plan = (told if isinstance(told, list) else json.loads(told))[0]["Plan"]
            names += re.findall(r'"(?:Node Type|Index Name)": "([^"]+)"', json.dumps(plan))
            share += read(plan, blocks)
    return {"names": names, "share": share}


def read(plan: dict[str, Any], blocks: int) -> float:
    return float(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]) / blocks


@pytest.mark.django_db
def test_a_search_reads_a_small_part_of_the_log(install: Install) -> None:
    a_log(make_audience(install), 300_000)
    assert search_index.summarise() > 300
    plan = plan_of_the_search()
    assert {"Bitmap Index Scan", "audiences_event_1_identifier_idx"} <= set(plan["names"])
    assert "Seq Scan" not in plan["names"]
    assert plan["share"] < 0.2


@pytest.mark.django_db
@pytest.mark.parametrize("without", ["the index", "summaries"])
def test_that_measure_notices_a_search_that_reads_everything(install: Install, without: str) -> None:
    a_log(make_audience(install), 300_000)
    if without == "the index":
        with connection.cursor() as cursor:
            cursor.execute("DROP INDEX events_of_a_customer")
    assert plan_of_the_search()["share"] > 0.6


@pytest.mark.django_db
def test_the_end_of_the_log_that_is_still_filled_is_left_open(install: Install) -> None:
    gold = make_audience(install)
    a_log(gold, 20_000)
    first = search_index.summarise()
    assert first > 0
    assert search_index.summarise() == 0
    with connection.cursor() as cursor:
        cursor.execute("SELECT brin_summarize_new_values('audiences_event_1_identifier_idx')")
        (left,) = cursor.fetchone() or (0,)
    assert search_index.OPEN_BLOCKS / 8 <= left <= search_index.OPEN_BLOCKS / 8 + 1


@pytest.mark.django_db(transaction=True)
def test_summarising_gives_way_to_a_vacuum(shop: Install, gold: Audience) -> None:
    a_log(gold, 20_000)
    own = connection.settings_dict
    with psycopg.connect(
        host=own["HOST"], port=own["PORT"], user=own["USER"], password=own["PASSWORD"], dbname=own["NAME"]
    ) as vacuum:
        vacuum.execute("LOCK TABLE audiences_event_1 IN SHARE UPDATE EXCLUSIVE MODE")
        assert search_index.summarise() == 0
    assert search_index.summarise() > 0


def test_a_search_needs_as_many_queries_for_many_events_as_for_one(
    shop: Install, gold: Audience, django_assert_num_queries: Callable[[int], Any]
) -> None:
    enter(gold, "kim", "lee")
    for at in range(2, 302):
        happen(gold, ("kim", "enter", at))
    for _ in range(7):
        step(shop, capacity=50)
    with CaptureQueriesContext(connection) as of_one:
        assert len(customer_history("lee").statuses) == 1
    with django_assert_num_queries(len(of_one)):
        assert len(customer_history("kim").statuses) == customers.SHOWN


def test_all_events_are_there_page_by_page(shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(customers, "SHOWN", 7)
    monkeypatch.setattr(customer_records, "READ", 11)
    silver = make_audience(shop, "silver")
    for audience in (gold, silver):
        happen(audience, *(("kim", "enter", at) for at in range(1, 16)))
    Event.objects.update(received_at=now())  # as with one call about several audiences
    seen: list[tuple[int, int]] = []
    page = customer_history("kim")
    while True:
        seen += [(status.event.audience_id, status.event.sequence) for status in page.statuses]
        if page.older is None:
            break
        page = customer_history("kim", before=page.older)
    assert seen == [(audience.pk, number) for audience in (silver, gold) for number in range(15, 0, -1)]


# --- the page -------------------------------------------------------------------------------------------------


def look(client: Client, identifier: str = "kim", **more: str) -> str:
    return client.post(PAGE, {"identifier": identifier, **more}).content.decode()


def note_of(page: str) -> str:
    found = re.search(r'name="note" value="([^"]+)"', page)
    assert found
    return found[1]


def ask(client: Client, install: Install, page: str) -> str:
    """As the page's script does when it has loaded."""
    told = client.post(PAGE, {"note": note_of(page), "ask": str(install.pk)}, headers={"HX-Request": "true"})
    assert told.status_code == 200
    return told.content.decode()


def text(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.unescape(page))).replace(" ,", ",")


@pytest.mark.django_db
def test_finding_customers_needs_the_permission() -> None:
    person = someone("", "nobody")
    assert person.get(PAGE).status_code == 403
    assert person.post(PAGE, {"identifier": "kim"}).status_code == 403
    assert "Find a customer" not in person.get(reverse("admin:index")).content.decode()
    assert Client().post(PAGE, {"identifier": "kim"})["Location"].startswith("/admin/login/")
    assert not LogEntry.objects.exists()


def test_the_other_audiences_of_the_install_are_counted(viewer: Client, shop: Install, gold: Audience) -> None:
    make_audience(shop, "silver")
    enter(gold, "kim")
    assert "No events for the other 1 audience of this install" in look(viewer)


@pytest.mark.django_db
def test_the_page_is_in_the_sidebar_and_asks_for_an_identifier(viewer: Client) -> None:
    assert PAGE in viewer.get(reverse("admin:index")).content.decode()
    page = viewer.get(PAGE).content.decode()
    (form,) = re.findall(rf'<form[^>]*action="{PAGE}"[^>]*role="search"[^>]*>', page)
    assert 'method="post"' in form
    assert 'name="identifier"' in page


@pytest.mark.django_db
def test_a_search_without_its_csrf_token_is_rejected(viewer: Client) -> None:
    viewer.handler.enforce_csrf_checks = True
    assert viewer.post(PAGE, {"identifier": "kim"}).status_code == 403


def test_a_customer_is_shown_unmasked_and_the_search_is_written_down_masked(
    viewer: Client, shop: Install, gold: Audience
) -> None:
    enter(gold, "kim@example.com")
    page = look(viewer, "  kim@example.com ")
    assert "kim@example.com" in page
    assert "lytics_gold" in page
    entry = LogEntry.objects.get()
    assert (entry.user.get_username(), entry.object_repr) == ("viewer", "of ki•••om")
    assert "kim@example" not in str(vars(entry))


def test_no_address_has_an_identifier_in_it(viewer: Client, shop: Install, gold: Audience) -> None:
    enter(gold, "kimberley")
    page = look(viewer, "kimberley")
    addresses = re.findall(r'(?:href|action|src|hx-\w+)="([^"]*)"', page)
    assert addresses
    assert not [address for address in addresses if "kimberley" in address]
    assert viewer.get(PAGE, {"identifier": "kimberley"}).content.decode().count("kimberley") == 0


def test_a_note_is_valid_only_for_the_person_it_was_made_for_and_for_a_day(
    viewer: Client, shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(gold, "kim")
    note = note_of(look(viewer))
    stranger = someone("operator")
    for client, told, seconds in ((viewer, note[:-2] + "xx", 9), (stranger, note, 9), (viewer, note, -1)):
        monkeypatch.setattr(customer, "NOTE_SECONDS", seconds)
        page = client.post(PAGE, {"note": told, "ask": str(shop.pk)}, headers={"HX-Request": "true"}).content.decode()
        assert "lytics_gold" not in page
    assert LogEntry.objects.count() == 1


def test_older_events_are_a_press_away(
    viewer: Client, shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(customers, "SHOWN", 3)
    happen(gold, *(("kim", "enter", at) for at in range(1, 6)))
    page = look(viewer)
    assert re.findall(r"event (\d)<", page) == ["5", "4", "3"]
    before = re.search(r'name="before" value="([^"]+)"', page)
    assert before
    told = {"note": note_of(page), "before": before[1].replace("&quot;", '"')}
    older = viewer.post(PAGE, told).content.decode()
    assert re.findall(r"event (\d)<", older) == ["2", "1"]
    assert LogEntry.objects.count() == 1


@pytest.mark.parametrize(
    "before",
    ["", "[]", '["x", 1, 2]', '["2026-01-01", "x", null]', "{", "[null, 1, 1]"]
    + [f'["2026-01-01T00:00:00Z", {odd}]' for odd in ("1e999, 1", "1e99, 1", "1, 1e99", "-1, 1")],
)
def test_an_invalid_page_position_starts_at_the_newest_event(
    viewer: Client, shop: Install, gold: Audience, before: str
) -> None:
    enter(gold, "kim")
    told = {"note": note_of(look(viewer)), "before": before}
    assert "lytics_gold" in viewer.post(PAGE, told).content.decode()


def test_a_number_of_thousands_of_digits_names_no_install(boss: Client, shop: Install, gold: Audience) -> None:
    enter(gold, "kim")
    note = note_of(look(boss))
    answers = [boss.post(PAGE, {"note": note, name: "9" * 5_000}) for name in ("ask", "forget", "export")]
    assert [answer.status_code for answer in answers] == [200, 404, 404]


@pytest.mark.parametrize("identifier", ["", "   ", "x\x00y", "x" * 300])
@pytest.mark.django_db
def test_an_impossible_identifier_is_not_searched(viewer: Client, identifier: str) -> None:
    assert viewer.post(PAGE, {"identifier": identifier}).status_code == 200
    assert not LogEntry.objects.exists()


@pytest.mark.django_db
def test_an_unknown_customer_gets_advice(viewer: Client, install: Install) -> None:
    data = {"email": "kim@example.com", "segment_events": [{"id": "a", "slug": "gold", "event": "enter"}]}
    ingest.receive(install, json.dumps({"data": data, "meta": {"object": "user"}}).encode())
    make_audience(install)
    Parked.objects.create(install=install, reason="refused_by_odp")
    told = text(look(viewer))
    assert "No customer found for kim" in told
    assert "Shop identifies customers by their Lytics field _id" in told
    assert "1 items that could not be read are parked, 1 of them because the identifier is missing" in told


def test_another_spelling_is_offered(viewer: Client, shop: Install, gold: Audience) -> None:
    enter(gold, "kim@example.com")
    drain = claim(shop)
    deliver(drain)
    told = text(look(viewer, "KIM@example.com"))
    assert "There is a customer kim@example.com" in told


# --- ODP's answer beside ours ---------------------------------------------------------------------------------


def in_odp(odp: ThreadedSandbox, identifier: str, odp_id: str, is_member: bool) -> None:
    """Another program writes to ODP."""
    for name in ("fs_user_id", "web_user_id"):
        status, _ = odp.odp("POST", "/v3/profiles", [{"attributes": {name: identifier, odp_id: is_member}}])
        assert status == 202


def test_the_search_itself_asks_odp_nothing(viewer: Client, odp: ThreadedSandbox, db: None) -> None:
    install = make_install(odp)
    gold = make_audience(install, provisioned=False)
    enter(gold, "kim")
    drain_all(install)
    before = len(odp.requests())
    page = look(viewer)
    assert len(odp.requests()) == before
    assert "Ask ODP" in page
    assert "ODP agrees" in text(ask(viewer, install, page))
    assert len(odp.requests()) == before + 1


def test_a_difference_is_one_line_with_the_button_that_corrects_it(odp: ThreadedSandbox, db: None) -> None:
    viewer, operator = someone("viewer"), someone("operator")
    install = make_install(odp)
    gold = make_audience(install, provisioned=False)
    enter(gold, "kim")
    drain_all(install)
    in_odp(odp, "kim", "lytics_gold", False)
    for client, may in ((viewer, False), (operator, True)):
        told = ask(client, install, look(client))
        assert "ODP: not a member. Ledger: member" in text(told)
        assert ("/resync/" in told) is may


def test_a_difference_that_waits_or_is_parked_says_so(odp: ThreadedSandbox, db: None) -> None:
    operator = someone("operator")
    install = make_install(odp)
    gold = make_audience(install, provisioned=False)
    enter(gold, "kim", "lee")
    drain_all(install)
    odp.fault({"path": "/v3/profiles"}, {"refuse_items": {"identifiers": ["kim"], "named": True}})
    happen(gold, ("kim", "exit", 2))
    drain_all(install)
    odp.clear_faults()
    told = ask(operator, install, look(operator))
    assert "ODP: member. Ledger: not a member. ODP rejected this change, and it is parked" in text(told)
    assert "/release/" in told
    in_odp(odp, "lee", "lytics_gold", False)
    happen(gold, ("lee", "enter", 3))
    told = ask(operator, install, look(operator, "lee"))
    assert "ODP: not a member. Ledger: member. Waiting events: 1." in text(told)
    assert "/resync/" not in told


def test_a_customer_who_is_a_member_only_in_odp_is_reported(viewer: Client, odp: ThreadedSandbox, db: None) -> None:
    install = make_install(odp)
    gold, silver = make_audience(install, provisioned=False), make_audience(install, "silver", provisioned=False)
    enter(gold, "kim")
    enter(silver, "lee")
    drain_all(install)
    in_odp(odp, "kim", "lytics_silver", True)
    told = text(ask(viewer, install, look(viewer)))
    assert "ODP: member. Ledger: not a member. Another system added the customer in ODP" in told


def test_odp_can_be_queried_about_an_unknown_customer(viewer: Client, odp: ThreadedSandbox, db: None) -> None:
    install = make_install(odp)
    gold = make_audience(install, provisioned=False)
    enter(gold, "kim")
    drain_all(install)
    in_odp(odp, "lee", "lytics_gold", True)
    told = {"note": note_of(look(viewer, "lee")), "ask": str(install.pk)}
    page = text(viewer.post(PAGE, told).content.decode())
    assert "ODP: member. Ledger: not a member" in page
    assert "ODP doesn't know this customer" not in page
    stranger = {"note": note_of(look(viewer, "max")), "ask": str(install.pk)}
    assert "ODP doesn't know this customer" in text(viewer.post(PAGE, stranger).content.decode())


def test_an_odp_that_is_down_is_words_and_stops_nothing(viewer: Client, shop: Install, gold: Audience) -> None:
    enter(gold, "kim")
    page = look(viewer)
    assert "lytics_gold" in page
    told = ask(viewer, shop, page)
    assert "ODP could not be asked: ODP could not be reached" in text(told)
    assert "lytics_gold" in told


def test_without_scripts_a_button_asks_odp(viewer: Client, odp: ThreadedSandbox, db: None) -> None:
    install = make_install(odp)
    gold = make_audience(install, provisioned=False)
    enter(gold, "kim")
    drain_all(install)
    page = viewer.post(PAGE, {"note": note_of(look(viewer)), "ask": str(install.pk)}).content.decode()
    assert "ODP agrees" in text(page)
    assert 'name="identifier"' in page


def test_an_audience_that_is_not_in_odp_yet_is_no_difference(viewer: Client, odp: ThreadedSandbox, db: None) -> None:
    install = make_install(odp)
    enter(make_audience(install, provisioned=False), "kim")
    told = text(ask(viewer, install, look(viewer)))
    assert "not there yet" in told
    assert "ODP: not a member" not in told


@pytest.mark.django_db
def test_the_newest_deliveries_of_an_event_are_named_and_the_others_counted(gold: Audience) -> None:
    event = Event(audience=Audience.objects.select_related("lane").get(), sequence=1, received_at=now())
    runs = tuple(Run(delivery_id=number) for number in range(1, 6))
    shown = customer._happening(EventStatus(event, End.DELIVERED, runs), "")
    assert (shown.deliveries, shown.more) == ([5, 4, 3], 2)


@pytest.mark.django_db
def test_every_end_has_a_word(install: Install) -> None:
    event = Event(
        audience=make_audience(install), sequence=1, identifier="kim", kind=1, occurred_ns=1, received_at=now()
    )
    event.audience = Audience.objects.select_related("install", "lane").get()
    row = Parked(reason="refused_by_odp", sequence=1)
    for end in End:
        parked = row if end is End.PARKED else None
        assert state.of_event(EventStatus(event, end, parked=parked)).tone != "none" or end is End.FOLDED
