"""The sync history: what went out is kept and shown, masked; lists narrow, download and renew themselves."""

import csv
import io
import json
import re
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now

from audiences import masked_answers, request_bodies
from audiences.admin import csv_file, filters, pages
from audiences.admin.runs_chart import chart
from audiences.models import Audience, Delivery, Install, Parked, Receipt, Resend, Run, Skip, Token
from odp.client import Client as Odp
from odp.mechanisms import MECHANISMS, Attribute, Change, Mechanism, encode, membership_in
from tests.delivering import drain_all, enter, happen, make_audience, make_install, sandbox
from tests.people import someone
from tests.test_admin import hidden, press, url

pytestmark = pytest.mark.django_db

PERSON = "kim@example.com"


@pytest.fixture
def shop() -> Install:
    return make_install()


@pytest.fixture
def gold(shop: Install) -> Audience:
    return make_audience(shop, "gold")


def address(name: str, *args: Any) -> str:
    return reverse(f"admin:audiences_{name}", args=args)


def page_of(client: Client, thing: Any) -> str:
    return client.get(url("change", thing)).content.decode()


def delivery(shop: Install, **values: Any) -> Delivery:
    """A successful one by default."""
    usual = {"endpoint": "/v3/profiles", "opened_at": now(), "closed_at": now(), "outcome": "delivered", "status": 202}
    more = {"items": 1, "bytes": 9, "latency_ms": 90, "worker": "w", "version": "1"}
    return Delivery.objects.create(**{**usual, **more, "install": shop, **values})


def run(audience: Audience, of: Delivery | None, number: int = 1, **values: Any) -> Run:
    usual = {"opened_at": now(), "closed_at": now(), "outcome": of.outcome if of else "delivered", "sent": 1}
    return Run.objects.create(
        **{**usual, "folded": 0, "audience": audience, "delivery": of, **values},
        first_sequence=number,
        last_sequence=number,
    )


# --- what went out --------------------------------------------------------------------------------------------


def test_the_stored_request_is_byte_by_byte_what_odp_received_with_its_headers(viewer: Client) -> None:
    with sandbox() as odp:
        shop = make_install(odp)
        gold = make_audience(shop, provisioned=False)
        enter(gold, PERSON, *(f"u{n}" for n in range(20)))
        drain_all(shop)
        (seen,) = [request for request in odp.requests(bodies=True) if request["path"] == "/v3/profiles"]
    sent = Delivery.objects.get()
    assert sent.request is not None
    assert request_bodies.unpack(bytes(sent.request)) == seen["body"]
    shown = viewer.get(url("change", sent)).context["headers"]
    on_the_wire = {name: value for name, value in seen["headers"].items() if name not in ("host", "x-api-key")}
    ours = {name.lower(): value for name, value in shown.items()}
    assert ours.pop("content-length") == str(len(seen["body"]))
    assert set(ours.pop("x-api-key")) == {"•"}
    assert ours == on_the_wire


def test_the_body_is_stored_before_the_call_goes_out() -> None:
    """Also for a request whose worker died during it."""
    with sandbox() as odp:
        shop = make_install(odp)
        gold = make_audience(shop, provisioned=False)
        enter(gold, PERSON)
        found: list[bool] = []
        open_now = Delivery.objects.filter(closed_at=None, request__isnull=False)
        call = Odp.call

        def look(self: Any, *args: Any, **kwargs: Any) -> Any:
            found.extend(
                request_bodies.unpack(bytes(one.request or b"")) == kwargs["body"].decode() for one in open_now.all()
            )
            return call(self, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Odp, "call", look)
            drain_all(shop)
    assert found == [True]


def test_a_request_is_masked_until_an_admin_asks_and_then_once(boss: Client, viewer: Client, shop: Install) -> None:
    body = encode([{"attributes": {"fs_user_id": PERSON, "web_user_id": PERSON, "lytics_gold": True}}])
    sent = delivery(shop, request=request_bodies.pack(body), bytes=len(body))
    for client in (viewer, boss):
        page = page_of(client, sent)
        assert PERSON not in page
        assert "ki•••om" in page
        assert "lytics_gold" in page
    assert viewer.get(url("reveal", sent)).status_code == 403
    assert viewer.post(url("reveal", sent)).status_code == 403
    assert "1 item" in press(boss, "reveal", sent)
    assert PERSON in page_of(boss, sent)
    assert PERSON not in page_of(boss, sent)
    assert "unmasked" in LogEntry.objects.get(object_id=str(sent.pk)).change_message


def test_a_stale_confirmation_reveals_nothing(boss: Client, shop: Install) -> None:
    sent = delivery(shop, request=request_bodies.pack(b"[]"))
    asked = boss.get(url("reveal", sent)).content.decode()
    Delivery.objects.update(request=None)
    boss.post(url("reveal", sent), hidden(asked))
    assert not LogEntry.objects.filter(object_id=str(sent.pk)).exists()


@pytest.mark.parametrize("mechanism", MECHANISMS.values(), ids=MECHANISMS)
def test_a_membership_is_read_back_from_a_request_item(mechanism: Mechanism) -> None:
    changes = [Change(n % 2, f"lytics_{n % 2}", f"customer-{n // 2}", n % 3 == 0, 10**18, n) for n in range(8)]
    items = request_bodies.items(
        encode([item for group in mechanism.groups(changes) for item in mechanism.items(group)]).decode()
    )
    for lane in (0, 1):
        said = [change for item in items if (change := membership_in(item, f"lytics_{lane}"))]
        assert said == [(change.identifier, change.is_member) for change in changes if change.lane == lane]


@pytest.mark.parametrize("mechanism", MECHANISMS.values(), ids=MECHANISMS)
def test_no_identifier_stays_in_a_masked_request(mechanism: Mechanism, viewer: Client, shop: Install) -> None:
    (group,) = mechanism.groups([Change(1, "lytics_gold", PERSON, True, 10**18, 1)])
    body = encode(mechanism.items(group))
    page = page_of(viewer, delivery(shop, request=request_bodies.pack(body), bytes=len(body)))
    assert PERSON not in page
    assert "lytics_gold" in page


def test_of_a_long_request_the_first_items_are_kept_and_it_says_so(viewer: Client, shop: Install) -> None:
    items = [{"attributes": {"fs_user_id": f"{n:04}-{'x' * 500}", "lytics_gold": True}} for n in range(1_000)]
    body = encode(items)
    assert len(body) > request_bodies.KEPT_BYTES
    sent = delivery(shop, request=request_bodies.pack(body), bytes=len(body), items=len(items))
    assert sent.request is not None
    kept = request_bodies.items(request_bodies.unpack(bytes(sent.request)))
    assert 100 < len(kept) < len(items)
    assert kept == items[: len(kept)]
    assert f"the first {len(kept)} of 1000 items" in page_of(viewer, sent)


def test_a_delivery_from_before_has_no_body_and_a_page(viewer: Client, shop: Install) -> None:
    assert "was not kept" in page_of(viewer, delivery(shop))


def test_the_response_of_odp_is_stored_also_after_a_success(viewer: Client) -> None:
    with sandbox() as odp:
        shop = make_install(odp)
        enter(make_audience(shop, provisioned=False), "u1")
        drain_all(shop)
    sent = Delivery.objects.get()
    assert (sent.outcome, json.loads(sent.answer)["status"]) == ("delivered", 202)
    assert "HTTP 202" in page_of(viewer, sent)


def test_a_run_unfolds_to_the_items_sent_for_its_audience(viewer: Client, shop: Install, gold: Audience) -> None:
    silver = make_audience(shop, "silver")
    changes = [Change(1, "lytics_gold", f"customer-{n:03}", n % 2 == 0, 10**18, n) for n in range(30)]
    changes.append(Change(2, "lytics_silver", PERSON, True, 10**18, 1))
    body = encode([item for group in Attribute().groups(changes) for item in Attribute().items(group)])
    sent = delivery(shop, request=request_bodies.pack(body), bytes=len(body), items=31)
    of_gold, of_silver = run(gold, sent, sent=30), run(silver, sent)
    piece = viewer.get(address("run_sent", of_gold.pk))
    assert piece.context["count"] == 30
    assert piece.context["changes"][:2] == [("cu•••00", True), ("cu•••01", False)]
    assert "and 10 more" in piece.content.decode()
    assert "customer-000" not in piece.content.decode()
    assert viewer.get(address("run_sent", of_silver.pk)).context["count"] == 1
    assert viewer.get(address("run_sent", run(gold, None, 2).pk)).status_code == 404


def test_the_items_of_a_run_need_the_permission(shop: Install, gold: Audience, client: Client) -> None:
    it = run(gold, delivery(shop))
    assert client.get(address("run_sent", it.pk))["Location"].startswith("/admin/login/")
    nobody = someone("viewer")
    from django.contrib.auth.models import Group, User

    User.objects.get(username="viewer").groups.remove(Group.objects.get(name="viewer"))
    assert nobody.get(address("run_sent", it.pk)).status_code == 403


def test_an_audience_page_reads_no_request_and_has_a_link_without_scripts(
    viewer: Client, shop: Install, gold: Audience, django_assert_num_queries: Callable[[int], Any]
) -> None:
    def queries() -> list[str]:
        with django_assert_num_queries(19) as seen:
            page = page_of(viewer, gold)
        assert address("delivery_change", Delivery.objects.all()[0].pk) in page
        return [query["sql"] for query in seen.captured_queries]

    run(gold, delivery(shop))
    viewer.get(url("change", gold))
    queries()
    for number in range(2, 40):
        run(gold, delivery(shop), number)
    assert not [statement for statement in queries() if '"audiences_delivery"."request"' in statement]


# --- filters --------------------------------------------------------------------------------------------------


def ids(client: Client, model: str, **query: Any) -> list[int]:
    listed = client.get(address(f"{model}_changelist"), query)
    assert listed.status_code == 200
    return [row.pk for row in listed.context["cl"].result_list]


def test_deliveries_are_narrowed_by_outcome_latency_audience_and_install(
    viewer: Client, shop: Install, gold: Audience
) -> None:
    other = make_install(name="Other")
    old = delivery(shop, opened_at=now() - timedelta(days=40))
    good = delivery(shop)
    refused = delivery(shop, outcome="refused", status=400, latency_ms=700)
    on_hold = delivery(other, outcome="retry_later", status=None, latency_ms=8000)
    under_way = delivery(shop, closed_at=None, outcome="", latency_ms=None)
    run(gold, old)
    run(gold, refused, 2)
    assert ids(viewer, "delivery", outcome="failed") == [on_hold.pk, refused.pk]
    assert ids(viewer, "delivery", outcome="refused") == [refused.pk]
    assert ids(viewer, "delivery", outcome="open") == [under_way.pk]
    assert ids(viewer, "delivery", slower="250") == [on_hold.pk, refused.pk]
    assert ids(viewer, "delivery", slower="5000") == [on_hold.pk]
    for name in ("lytics_gold", "gold", " gold "):
        assert ids(viewer, "delivery", audience=name) == [refused.pk, old.pk]
    assert ids(viewer, "delivery", audience="gold", outcome="failed") == [refused.pk]
    assert ids(viewer, "delivery", audience="nobody's") == []
    assert ids(viewer, "delivery", install__id__exact=other.pk) == [on_hold.pk]
    assert ids(viewer, "delivery", q=str(good.pk)) == [good.pk]
    assert ids(viewer, "delivery", slower="7") == [d.pk for d in (under_way, on_hold, refused, good, old)]


def test_runs_are_narrowed_by_outcome_audience_and_install(viewer: Client, shop: Install, gold: Audience) -> None:
    other = make_install(name="Other")
    silver = make_audience(other, "silver")
    good, bad = run(gold, delivery(shop)), run(silver, delivery(other, outcome="unknown"))
    old = run(gold, None, 2, opened_at=now() - timedelta(days=40))
    skip = Skip.objects.create(install=shop, by="kim", reason="a restored backup")
    skipped = run(gold, None, 3, outcome="skipped", skip=skip)
    assert ids(viewer, "run", outcome="failed") == [bad.pk]
    assert ids(viewer, "run", outcome="skipped") == [skipped.pk]
    assert ids(viewer, "run", audience="gold") == [skipped.pk, old.pk, good.pk]
    assert ids(viewer, "run", install=shop.pk) == [skipped.pk, old.pk, good.pk]
    assert ids(viewer, "run", install=other.pk, outcome="failed") == [bad.pk]


def test_a_run_without_a_delivery_says_why_nothing_was_sent(viewer: Client, shop: Install, gold: Audience) -> None:
    run(gold, None, 1, sent=0, folded=1)
    skip = Skip.objects.create(install=shop, by="kim", reason="a restored backup")
    run(gold, None, 2, sent=0, outcome="skipped", skip=skip)
    for page in (page_of(viewer, gold), viewer.get(reverse("admin:audiences_run_changelist")).content.decode()):
        assert page.count("Nothing was sent: all events were folded.") == 1
        assert page.count("Nothing was sent: skipped by kim: a restored backup") == 1


def test_all_runs_of_an_install_are_reached_page_by_page(viewer: Client, shop: Install, gold: Audience) -> None:
    of_others = make_audience(make_install(name="Other"))
    mine = []
    for number in range(1, 131):
        mine.append(run(gold, None, number).pk)
        run(of_others, None, number)
    seen = [pk for page in (1, 2, 3) for pk in ids(viewer, "run", install=shop.pk, p=page)]
    assert seen == mine[::-1]


def test_receipts_are_narrowed_by_verdict(viewer: Client, shop: Install) -> None:
    def call(**values: Any) -> int:
        usual = {"install": shop, "bytes": 1, "messages": 1, "queued": 1, "parked": 0, "skipped": 0}
        return Receipt.objects.create(**{**usual, **values}).pk

    call()
    parked, empty = call(parked=1), call(queued=0)
    assert ids(viewer, "receipt", verdict="parked") == [parked]
    assert ids(viewer, "receipt", verdict="empty") == [empty]


def test_the_box_for_an_audience_keeps_the_other_filters_and_lists_no_audience(
    viewer: Client, shop: Install, gold: Audience
) -> None:
    page = viewer.get(address("delivery_changelist"), {"outcome": "failed"}).content.decode()
    box = page[page.index('class="ls-typed"') :].split("</form>")[0]
    assert '<input type="hidden" name="outcome" value="failed">' in box
    assert "lytics_gold" not in box


# --- sorting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "column"),
    [("run", "opened"), ("delivery", "opened"), ("delivery", "delivery"), ("receipt", "received"),
     ("receipt", "call"), ("parked", "item"), ("parked", "parked_"), ("resend", "asked")],
)  # fmt: skip
def test_a_list_sorts_by_its_number_and_time_in_both_directions(
    viewer: Client, shop: Install, gold: Audience, model: str, column: str
) -> None:
    at = datetime(2026, 1, 31, 14, tzinfo=UTC)
    for hours in range(3):
        then = at + timedelta(minutes=hours)
        of = delivery(shop, opened_at=then)
        run(gold, of, hours + 1, opened_at=then)
        Receipt.objects.create(install=shop, bytes=1, messages=1, queued=1, parked=0, skipped=0, received_at=then)
        Parked.objects.create(install=shop, reason="not_json", parked_at=then)
        Resend.objects.create(install=shop, kind="release", parked_reason=f"r{hours}", by="kim", total=1, asked_at=then)
    columns = viewer.get(address(f"{model}_changelist")).context["cl"].list_display
    place = columns.index(column)
    narrowed: list[dict[str, str]] = [{}]
    if model in ("run", "delivery", "receipt"):
        narrowed.append({"since": f"{at:%Y-%m-%dT%H:%M}", "until": "2026-01-31"})
    if model in ("run", "delivery"):
        narrowed.append({"audience": "gold"})
    if model == "run":
        narrowed.append({"install": str(shop.pk)})
    for query in narrowed:
        upward = ids(viewer, model, o=str(place), **query)
        assert len(upward) == 3, query
        assert upward == sorted(upward), query
        assert ids(viewer, model, o=f"-{place}", **query) == upward[::-1], query
    page = viewer.get(address(f"{model}_changelist")).content.decode()
    assert f"?o={place}" in page or f"?o=-{place}" in page


def test_the_oldest_rows_come_first_also_if_a_page_reads_only_some(
    viewer: Client, shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filters, "COUNTED", 1)
    made = [run(gold, delivery(shop), number) for number in range(1, 61)]
    for model, query in (("run", {"install": str(shop.pk)}), ("delivery", {"audience": "gold"})):
        assert ids(viewer, model, o="6", **query)[0] == min(
            one.pk if model == "run" else one.delivery_id or 0 for one in made
        )


def test_deliveries_of_an_audience_are_found_in_a_period_before_its_newest_runs(
    viewer: Client, shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filters, "COUNTED", 1)
    old = delivery(shop, opened_at=datetime(2026, 1, 31, 14, tzinfo=UTC))
    for number, of in enumerate([old, *(delivery(shop) for _ in range(60))], start=1):
        run(gold, of, number, opened_at=of.opened_at)
    assert ids(viewer, "delivery", audience="gold", since="2026-01-31", until="2026-01-31") == [old.pk]


def test_a_file_is_whole_however_the_page_is_sorted(
    viewer: Client, shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_file, "ROWS", 3)
    made = [delivery(shop, opened_at=datetime(2026, 1, 31, 14, minute, tzinfo=UTC)).pk for minute in range(8)]
    for query in ("o=6", "o=-6", "o=6&since=2026-01-31", "o=-6&until=2026-01-31"):
        rows = rows_of(viewer.post(f"{address('delivery_csv')}?{query}"))
        assert [int(row["delivery"]) for row in rows] == made[::-1], query


def test_tokens_sort_by_every_column(viewer: Client, shop: Install) -> None:
    def token(name: str, **values: Any) -> str:
        Token.objects.create(install=shop, slot=1, name=name, digest=name, secret="s", **values)
        return name

    at = datetime(2026, 1, 31, tzinfo=UTC)
    Token.objects.all().delete()
    names = [
        token("d", revoked_at=at, created_at=at, last_used_at=at, last_used_from="10.0.0.4"),
        token("C", expires_at=at, created_at=at - timedelta(1), last_used_at=at - timedelta(1),
              last_used_from="10.0.0.3"),
    ]  # fmt: skip
    Token.objects.filter(name="C").update(slot=2)
    names.append(token("b", created_at=at - timedelta(2), last_used_at=at - timedelta(2), last_used_from="10.0.0.2"))
    cl = viewer.get(address("token_changelist")).context["cl"]
    assert list(cl.sortable_by) == list(cl.list_display)
    for place, column in enumerate(cl.list_display):
        found = viewer.get(address("token_changelist"), {"o": str(place)}).context["cl"].result_list
        if column != "install":
            assert [one.name for one in found] == names[::-1], column


@pytest.mark.parametrize(("rows", "words"), [(2, "2 in all"), (3, "3 in all"), (4, "more than 3"), (9, "more than 3")])
def test_a_list_counts_its_rows_up_to_a_bound(
    viewer: Client, shop: Install, gold: Audience, rows: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (filters, pages):
        monkeypatch.setattr(module, "COUNTED", 4)
    for number in range(1, rows + 1):
        run(gold, delivery(shop), number)
    for model, query in (("run", ""), ("run", f"?install={shop.pk}"), ("delivery", ""), ("delivery", "?audience=gold")):
        assert f"<span>{words}</span>" in viewer.get(address(f"{model}_changelist") + query).content.decode()


# --- CSV ------------------------------------------------------------------------------------------------------


def rows_of(answer: Any) -> list[dict[str, str]]:
    text = b"".join(answer.streaming_content).decode()
    return list(csv.DictReader(io.StringIO(text)))


def test_a_download_has_the_filtered_rows_and_is_recorded_in_the_history(viewer: Client, shop: Install) -> None:
    good = delivery(shop)
    bad = delivery(shop, outcome="refused", reason="400: no ünit")
    button = re.search(
        r'<form method="post" action="([^"]+)" class="ls-csv">',
        viewer.get(address("delivery_changelist"), {"outcome": "failed"}).content.decode(),
    )
    assert button
    posted = viewer.post(address("delivery_changelist") + button[1].replace("&amp;", "&"))
    assert posted["Content-Type"] == "text/csv; charset=utf-8"
    (row,) = rows_of(posted)
    assert (row["delivery"], row["reason"]) == (str(bad.pk), "400: no ünit")
    assert row["opened_at"] == bad.opened_at.isoformat()
    assert [row["delivery"] for row in rows_of(viewer.post(address("delivery_csv")))] == [str(bad.pk), str(good.pk)]
    assert "outcome=failed" in LogEntry.objects.order_by("pk")[0].change_message


@pytest.mark.parametrize("model", ["delivery", "run", "receipt"])
def test_every_list_of_the_history_can_be_downloaded(viewer: Client, model: str, shop: Install, gold: Audience) -> None:
    sent = delivery(shop)
    run(gold, sent)
    Receipt.objects.create(install=shop, bytes=1, messages=1, queued=1, parked=0, skipped=0)
    (row,) = rows_of(viewer.post(address(f"{model}_csv")))
    assert shop.name in row.values()


def test_a_download_needs_the_permission(shop: Install, client: Client) -> None:
    from django.contrib.auth.models import Group, Permission, User

    person = someone("viewer")
    viewers = Group.objects.get(name="viewer")
    viewers.permissions.remove(Permission.objects.get(codename="view_delivery"))
    assert person.post(address("delivery_csv")).status_code == 403
    assert person.post(address("run_csv")).status_code == 200
    assert person.get(address("run_csv")).status_code == 405
    assert client.post(address("delivery_csv"))["Location"].startswith("/admin/login/")
    assert User.objects.count() == 1


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx", "＝1"])
def test_no_cell_is_a_formula(viewer: Client, shop: Install, text: str) -> None:
    delivery(shop, reason=text, outcome="refused")
    (row,) = rows_of(viewer.post(address("delivery_csv")))
    assert row["reason"] == f"'{text}"


def test_a_long_download_is_streamed(
    viewer: Client,
    shop: Install,
    django_assert_num_queries: Callable[[int], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Few long rows in many pieces, because tracemalloc makes each row slow."""
    monkeypatch.setattr(csv_file, "ROWS", 400)
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO audiences_delivery (install_id, endpoint, opened_at, closed_at, outcome, items, bytes, reason,"
            " answer, worker, version) SELECT %s, '/v3/profiles', now(), now(), 'delivered', 1, 1, repeat('x', 1000),"
            " '', 'w', '1' FROM generate_series(1, 8000)",
            [shop.pk],
        )
    answer: Any = viewer.post(address("delivery_csv"))
    pieces = iter(answer.streaming_content)
    with django_assert_num_queries(2 + csv_file.ROWS // masked_answers.AT_ONCE):
        assert next(pieces).startswith(b"delivery,install")
        assert next(pieces).count(b"\n") == csv_file.ROWS
    tracemalloc.start()
    try:
        size = sum(len(piece) for piece in pieces)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size > 8_000_000
    assert most < size * 2 / 3


# --- the chart ------------------------------------------------------------------------------------------------


def test_no_run_no_chart(viewer: Client, gold: Audience) -> None:
    assert chart([]) is None
    assert "<svg" not in page_of(viewer, gold).split("Sync history</h2>")[1]


@pytest.mark.parametrize("count", [1, 3, 60])
def test_runs_are_bars_that_lead_to_the_runs(viewer: Client, shop: Install, gold: Audience, count: int) -> None:
    made = [run(gold, delivery(shop, latency_ms=number), number).pk for number in range(1, count + 1)][-50:]
    page = page_of(viewer, gold)
    drawn = [int(pk) for pk in re.findall(r'<a href="#run-(\d+)" class="ls-bar', page)]
    assert drawn == made
    assert all(f'id="run-{pk}"' in page for pk in made)
    assert page.count("<title>") >= len(made)


def test_a_bar_is_as_tall_as_its_run_and_has_its_colour(shop: Install, gold: Audience) -> None:
    big = run(gold, delivery(shop), 1, sent=300, folded=100)
    bad = run(gold, delivery(shop, outcome="refused", latency_ms=900), 2, sent=200)
    none = run(gold, None, 3, sent=0, folded=50)
    drawing = chart([none, bad, big])
    assert drawing
    of_big, of_bad, of_none = drawing["bars"]
    assert (of_big.tone, of_bad.tone, of_none.tone) == ("good", "bad", "good")
    assert of_big.sent[1] == pytest.approx(3 * of_big.folded[1])
    assert of_big.folded[0] + of_big.folded[1] == pytest.approx(of_big.sent[0])
    assert of_bad.sent[1] == pytest.approx(of_big.sent[1] * 2 / 3)
    assert of_none.sent[1] == 0
    assert (drawing["failed"], drawing["slowest"]) == (1, 900)
    assert "rejected, 200 sent, 0 folded, 900 ms" in of_bad.title


# --- Live -----------------------------------------------------------------------------------------------------


def test_live_shows_the_newest_calls_and_deliveries(viewer: Client, shop: Install) -> None:
    sent = delivery(shop, outcome="refused", reason="400: no")
    call = Receipt.objects.create(install=shop, bytes=1, messages=3, queued=2, parked=1, skipped=0)
    page = viewer.get(address("live")).content.decode()
    assert address("delivery_change", sent.pk) in page
    assert address("receipt_change", call.pk) in page
    assert "live.js" in page
    assert address("live") in viewer.get("/admin/").content.decode()


def test_live_asks_for_a_piece_only_in_a_fixed_number_of_queries(
    viewer: Client, shop: Install, django_assert_num_queries: Callable[[int], Any]
) -> None:
    def renewed() -> str:
        with django_assert_num_queries(6):
            return viewer.get(address("live"), headers={"HX-Request": "true"}).content.decode()

    assert "<html" not in renewed()
    for _ in range(120):
        delivery(shop)
        Receipt.objects.create(install=shop, bytes=1, messages=3, queued=2, parked=1, skipped=0)
    assert renewed().count("data-row=") == 100


@pytest.mark.parametrize("missing", ["view_receipt", "view_delivery"])
def test_live_needs_both_permissions(missing: str) -> None:
    from django.contrib.auth.models import Group, Permission

    Group.objects.get(name="viewer").permissions.remove(Permission.objects.get(codename=missing))
    person = someone("viewer")
    assert person.get(address("live")).status_code == 403
    assert address("live") not in person.get("/admin/").content.decode()


def test_enters_and_exits_are_distinguished_in_the_items_sent(viewer: Client) -> None:
    with sandbox() as odp:
        shop = make_install(odp)
        gold = make_audience(shop, provisioned=False)
        happen(gold, ("anna-0001", "enter", 5), ("otto-0002", "exit", 5))
        drain_all(shop)
    piece = viewer.get(address("run_sent", Run.objects.get().pk))
    assert sorted(piece.context["changes"]) == [("an•••01", True), ("ot•••02", False)]


def test_an_id_in_odp_keeps_its_small_letter_at_the_top_of_its_page(viewer: Client, gold: Audience) -> None:
    page = page_of(viewer, gold)
    assert "lytics_gold" in page
    assert "Lytics_gold" not in page
