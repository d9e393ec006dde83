"""Lists are narrowed by a period: in the address, in UTC, by number on any size of table, with CSV and count."""

import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urljoin

import pytest
from django.contrib.admin.models import CHANGE, LogEntry
from django.db.models import Model
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now

from audiences.admin import csv_file, filters, pages, periods
from audiences.admin.periods import Period
from audiences.models import Audience, Audit, Delivery, Install, Parked, Receipt, Resend, Run, Trouble
from tests.delivering import make_audience, make_install
from tests.test_history import delivery, run

pytestmark = pytest.mark.django_db

DAY = datetime(2026, 1, 31, tzinfo=UTC)
TEN = DAY + timedelta(hours=10)
LISTS = ("run", "delivery", "receipt", "parked", "resend", "audit", "logentry", "trouble")


@pytest.fixture
def shop() -> Install:
    return make_install()


@pytest.fixture
def gold(shop: Install) -> Audience:
    return make_audience(shop, "gold")


def address(model: str, what: str = "changelist") -> str:
    app = "admin" if (model, what) == ("logentry", "changelist") else "audiences"
    return reverse(f"admin:{app}_{model}_{what}")


def page(client: Client, model: str, **query: Any) -> Any:
    answer = client.get(address(model), query)
    assert answer.status_code == 200, answer.headers
    return answer


def ids(client: Client, model: str, **query: Any) -> list[int]:
    return [row.pk for row in page(client, model, **query).context["cl"].result_list]


def made(model: str, shop: Install, gold: Audience, at: datetime, number: int = 1) -> Model:
    match model:
        case "run":
            return run(gold, delivery(shop, opened_at=at), number, opened_at=at)
        case "delivery":
            return delivery(shop, opened_at=at)
        case "receipt":
            counts = {"bytes": 1, "messages": 1, "queued": 1, "parked": 0, "skipped": 0}
            return Receipt.objects.create(install=shop, received_at=at, **counts)
        case "parked":
            return Parked.objects.create(install=shop, reason="no_identifier", parked_at=at)
        case "resend":
            return Resend.objects.create(
                install=shop, audience=gold, kind="resync", by="kim", reason="why", total=0, asked_at=at, ended_at=at
            )
        case "audit":
            ended = {"ended_at": at, "phase": "done"}
            return Audit.objects.create(
                install=shop, audience=gold, mode="full", by="kim", asked_at=at, is_newest=False, **ended
            )
        case "trouble":
            seen = {"first_seen_at": at, "last_seen_at": at, "resolved_at": at + timedelta(minutes=1)}
            return Trouble.objects.create(key=f"key/{number}", kind="blocked", what="x", path="/", since_at=at, **seen)
    entry = LogEntry.objects.create(user_id=person(), action_flag=CHANGE, object_repr="x", change_message="x")
    LogEntry.objects.filter(pk=entry.pk).update(action_time=at)
    return entry


def person() -> int:
    from django.contrib.auth.models import User

    return User.objects.order_by("pk")[0].pk


@pytest.mark.parametrize("model", LISTS)
def test_a_list_is_narrowed_by_a_period_whose_last_minute_or_day_is_part_of_it(
    boss: Client, shop: Install, gold: Audience, model: str
) -> None:
    LogEntry.objects.all().delete()
    Trouble.objects.all().delete()
    times = (DAY - timedelta(minutes=2), TEN, TEN + timedelta(minutes=30, seconds=59), DAY + timedelta(days=1))
    before, first, last, after = (made(model, shop, gold, at, n).pk for n, at in enumerate(times, start=1))
    assert ids(boss, model) == [after, last, first, before]
    assert ids(boss, model, since="2026-01-31T10:00", until="2026-01-31T10:30") == [last, first]
    assert ids(boss, model, since="2026-01-31 10:01", until="2026-01-31 10:29") == []
    assert ids(boss, model, since="2026-01-31", until="2026-01-31") == [last, first]
    assert ids(boss, model, since="2026-01-31T10:02") == [after, last]
    assert ids(boss, model, until="2026-01-31T10:00") == [first, before]
    assert ids(boss, model, since="1066-10-14", until="9999-12-31") == [after, last, first, before]
    assert ids(boss, model, since="", until=" ") == [after, last, first, before]
    shown = page(boss, model, since="2026-01-31", until="2026-01-31T10:30").content.decode()
    assert 'name="since" value="2026-01-31T00:00"' in shown
    assert 'name="until" value="2026-01-31T10:30"' in shown


@pytest.mark.parametrize("model", LISTS)
@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"since": "last week"}, "“last week” is not a time. Write 2026-01-31T14:30, or 2026-01-31 for a whole day"),
        ({"until": "2026-02-30"}, "“2026-02-30” is not a time."),
        ({"since": "2026-01-31T25:00"}, "“2026-01-31T25:00” is not a time."),
        ({"since": "<b>" * 99}, "“&lt;b&gt;"),
        (
            {"since": "2026-02-01", "until": "2026-01-31T10:00"},
            "The first time, 2026-02-01, is after the last, 2026-01-31T10:00: no row can be between them.",
        ),
    ],
)
def test_what_is_no_period_is_said_and_lists_nothing(
    boss: Client, shop: Install, gold: Audience, model: str, query: dict[str, str], words: str
) -> None:
    made(model, shop, gold, TEN)
    answer = page(boss, model, **query)
    assert list(answer.context["cl"].result_list) == []
    text = answer.content.decode()
    assert f'<p role="alert">{words}' in text
    assert "<b><b>" not in text
    assert "1 in all" not in text


@pytest.mark.parametrize("model", ["run", "delivery", "receipt", "logentry"])
def test_a_file_has_the_rows_of_the_period_and_none_without_one(
    boss: Client, shop: Install, gold: Audience, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_file, "ROWS", 2)
    LogEntry.objects.all().delete()
    made(model, shop, gold, DAY - timedelta(days=1))
    rows = [made(model, shop, gold, TEN + timedelta(minutes=n), n + 2) for n in range(5)]
    made(model, shop, gold, DAY + timedelta(days=2), 9)
    posted: Any = boss.post(f"{address(model, 'csv')}?since=2026-01-31T10:01&until=2026-01-31T10:04")
    lines = list(csv.reader(io.StringIO(b"".join(posted.streaming_content).decode())))
    assert len(lines) == len(rows)  # four of five, and the heading
    downloads = LogEntry.objects.filter(change_message__startswith="Downloaded").count()
    wrong: Any = boss.post(f"{address(model, 'csv')}?since=tomorrow")
    assert wrong.status_code == 302
    assert LogEntry.objects.filter(change_message__startswith="Downloaded").count() == downloads
    listed = boss.get(urljoin(address(model, "csv"), wrong["Location"]))
    assert "“tomorrow” is not a time" in listed.content.decode()


def test_counts_and_pages_obey_the_period(
    viewer: Client, shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that are narrowed by install or audience, which count in their own way."""
    for module in (filters, pages):
        monkeypatch.setattr(module, "COUNTED", 5)
    for number, at in enumerate((DAY - timedelta(1), TEN, TEN, TEN, DAY + timedelta(1), DAY + timedelta(1)), start=1):
        made("run", shop, gold, at, number)
    narrowed: dict[str, dict[str, Any]] = {"run": {"install": shop.pk}, "delivery": {"audience": "gold"}}
    for model, more in narrowed.items():
        orders: tuple[dict[str, Any], ...] = ({}, {"o": "6"}, {"o": "-6"})
        for order in orders:
            for query in (order, {**order, **more}):
                asked = {"since": "2026-01-31", "until": "2026-01-31", **query}
                assert len(ids(viewer, model, **asked)) == 3, (model, asked)
                assert "<span>3 in all</span>" in page(viewer, model, **asked).content.decode(), (model, asked)
        assert "<span>more than 4</span>" in page(viewer, model, since="2026-01-30", **more).content.decode()
        assert "in all</span>" not in page(viewer, model, since="x", **more).content.decode()


def test_ends_that_are_exchanged_stay_in_their_boxes(viewer: Client, shop: Install) -> None:
    text = page(viewer, "delivery", since="2026-02-01", until="2026-01-31").content.decode()
    assert 'name="since" value="2026-02-01T00:00" aria-invalid="true"' in text
    assert 'name="until" value="2026-01-31T23:59" aria-invalid="true"' in text


def test_other_filters_and_the_order_stay_in_the_address_of_the_boxes(viewer: Client, shop: Install) -> None:
    text = page(viewer, "delivery", outcome="failed", o="6", since="2026-01-31").content.decode()
    boxes = text[text.index("ls-period") : text.index("</form>", text.index("ls-period"))]
    assert '<input type="hidden" name="outcome" value="failed">' in boxes
    assert '<input type="hidden" name="o" value="6">' in boxes
    assert boxes.count('name="since"') == 1
    assert 'href="?o=6&amp;outcome=failed">Any time</a>' in boxes


def test_usual_periods_are_one_click_away(viewer: Client, shop: Install) -> None:
    at = datetime(2026, 3, 1, 10, 30, 59, tzinfo=UTC)
    assert dict(periods.usual(at)) == {
        "Last hour": {"since": "2026-03-01T09:30", "until": None},
        "Today": {"since": "2026-03-01", "until": None},
        "Yesterday": {"since": "2026-02-28", "until": "2026-02-28"},
        "7 days": {"since": "2026-02-23", "until": None},
    }
    text = page(viewer, "delivery", outcome="failed", until="2026-01-31").content.decode()
    assert f'<a class="ls-link" href="?outcome=failed&amp;since={now():%Y-%m-%d}">Today</a>' in text


def test_a_row_whose_clock_was_behind_is_found_within_the_slack(viewer: Client, shop: Install) -> None:
    """A later number has an earlier time, because another machine's clock was behind."""
    ahead = delivery(shop, opened_at=TEN + periods.SLACK - timedelta(seconds=1))
    behind = delivery(shop, opened_at=TEN)
    delivery(shop, opened_at=TEN + 3 * periods.SLACK)
    asked = {"since": "2026-01-31T10:00", "until": "2026-01-31T10:00"}
    assert ids(viewer, "delivery", **asked) == [behind.pk]
    assert ids(viewer, "delivery", since="2026-01-31T10:04", until="2026-01-31T10:05") == [ahead.pk]


@pytest.mark.parametrize("kept", [(), (1,), (500,), (1, 500, 501, 900), tuple(range(1, 20)), (3, 4, 5, 10**12)])
def test_the_numbers_of_a_period_are_found_whatever_is_missing_between_them(
    shop: Install, kept: tuple[int, ...]
) -> None:
    """Pruned rows leave gaps. Each row is ten minutes after the one before it."""
    at = {number: DAY + timedelta(minutes=10 * place) for place, number in enumerate(kept)}
    for number, opened_at in at.items():
        delivery(shop, pk=number, opened_at=opened_at)
    for start in (DAY - timedelta(1), *at.values(), now()):
        for end in (DAY - timedelta(1), *at.values(), now()):
            found = Period(start, end).of(Delivery.objects.all(), "opened_at").order_by("pk")
            assert [row.pk for row in found] == [number for number in kept if start <= at[number] < end]


def test_an_hour_of_a_big_list_needs_no_index_of_its_time(viewer: Client, shop: Install) -> None:
    numbers = Period(TEN, TEN + timedelta(hours=1)).numbers(Run, "opened_at")
    assert numbers == range(0)
    for minute in range(0, 300, 10):
        delivery(shop, opened_at=TEN + timedelta(minutes=minute))
    first = Delivery.objects.earliest("pk").pk
    assert Period(TEN + timedelta(hours=1), TEN + timedelta(hours=2)).numbers(Delivery, "opened_at") == range(
        first + 6, first + 13
    )


def test_a_trouble_is_listed_for_each_period_in_which_it_was_open(boss: Client, shop: Install, gold: Audience) -> None:
    Trouble.objects.all().delete()
    long = made("trouble", shop, gold, TEN)
    Trouble.objects.filter(pk=long.pk).update(resolved_at=TEN + timedelta(hours=5))
    still = made("trouble", shop, gold, TEN + timedelta(hours=1), 2)
    Trouble.objects.filter(pk=still.pk).update(resolved_at=None)
    assert ids(boss, "trouble", since="2026-01-31T12:00", until="2026-01-31T13:00") == [still.pk, long.pk]
    assert ids(boss, "trouble", since="2026-02-01") == [still.pk]
    assert ids(boss, "trouble", until="2026-01-31T10:30") == [long.pk]
