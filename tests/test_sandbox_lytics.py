"""The Lytics sender of the sandbox, against a real HTTP server that writes down every call."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

import pytest

from sandbox.lytics import clock
from sandbox.lytics.__main__ import main
from sandbox.lytics.audiences import audiences
from sandbox.lytics.calls import LONGEST_DELAY, calls
from sandbox.lytics.model import Memberships, Message, nanoseconds
from sandbox.lytics.sender import Job, Sender, Stopped, retry_after
from sandbox.lytics.stream import Plan, Stream
from tests.threads import PATIENCE

ROOT = Path(__file__).parent.parent


class Answer:
    def __init__(self, status: int = 200, **headers: str) -> None:
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


CUT = Answer(0)  # the connection ends without an answer


class Receiver(ThreadingHTTPServer):
    """Answers from a list, then 200; `hold` keeps a call waiting."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *answers: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = list(answers)
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.connections: set[object] = set()
        self.lock = threading.Lock()
        self.inside = self.most_inside = 0
        self.hold: Callable[[], object] = lambda: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/webhooks/lytics/demo"

    @property
    def messages(self) -> list[Message]:
        return [message for body in self.bodies for message in (body if isinstance(body, list) else [body])]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that was interrupted hangs up, which is no news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Receiver

    def do_POST(self) -> None:
        call = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = self._take(call)
        self.server.hold()
        with self.server.lock:
            self.server.inside -= 1
        if answer is CUT:
            self.close_connection = True
            return
        self.send_response(answer.status)
        body = b"" if answer.status == 204 else b"{}"
        for name, value in {**answer.headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _take(self, body: Any) -> Answer:
        receiver = self.server
        with receiver.lock:
            receiver.bodies.append(body)
            receiver.headers.append(dict(self.headers))
            receiver.times.append(monotonic())
            receiver.connections.add(self.client_address)
            receiver.inside += 1
            receiver.most_inside = max(receiver.most_inside, receiver.inside)
            return receiver.answers.pop(0) if receiver.answers else Answer()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def send(receiver: Receiver, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    def send(*arguments: object) -> tuple[int, dict[str, Any]]:
        code = main(["--url", receiver.url, "--json", "--retry-scale", "0.001", *map(str, arguments)])
        return code, json.loads(capsys.readouterr().out)

    return send


def plan(**changes: Any) -> Plan:
    facts = {"events": 3000, "audiences": audiences(how_many=8, seed=7), "seed": 7, "customers": 700, **changes}
    return Plan(**facts)


def transitions(messages: list[Message]) -> list[dict[str, str]]:
    return [one for message in messages for one in message["data"]["segment_events"]]


def folded(messages: list[Message], field: str = "_id") -> Memberships:
    memberships = Memberships(field)
    for message in messages:
        memberships.see(message)
    return memberships


def lists(memberships: Memberships, named: list[Any]) -> list[tuple[list[str], list[str]]]:
    return [(memberships.members(one.segment_id), memberships.others(one.segment_id)) for one in named]


KINDS = [
    {},
    {"array_identifiers": True},
    {"numeric_identifiers": True},
    {"cloudevents": True, "full_profiles": True},
    {"customers": 20},
    {"audiences": audiences(how_many=1, seed=7)},
]


class TestTheStory:
    def test_a_seed_gives_the_same_calls_again(self) -> None:
        def bodies(seed: int) -> list[bytes]:
            stream = calls(Stream(plan(seed=seed)), batch=50, late=0.2, repeat=0.2, seed=seed)
            return [call.body for call in stream]

        assert bodies(7) == bodies(7)
        assert bodies(7) != bodies(8)

    def test_a_seed_gives_the_same_memberships_in_another_process(self, tmp_path: Path) -> None:
        for salt in ("1", "2"):
            command = ["--dry-run", "--seed", "5", "--array-identifiers", "--memberships", str(tmp_path / salt)]
            run(*command, environment={"PYTHONHASHSEED": salt})
        assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()

    @pytest.mark.parametrize("changes", KINDS)
    @pytest.mark.parametrize("events", [1, 2, 3, 50, 3000])
    def test_it_has_exactly_the_requested_number_of_transitions(self, events: int, changes: dict[str, Any]) -> None:
        assert len(transitions(list(Stream(plan(events=events, **changes))))) == events

    @pytest.mark.parametrize("changes", KINDS)
    @pytest.mark.parametrize("seed", range(5))
    def test_the_model_agrees_with_the_ground_truth_of_the_shop(self, seed: int, changes: dict[str, Any]) -> None:
        stream = Stream(plan(seed=seed, **changes))
        memberships = folded(list(stream))
        for number, audience in enumerate(stream.plan.audiences):
            assert memberships.members(audience.segment_id) == stream.members(number)

    @pytest.mark.parametrize("changes", KINDS)
    def test_any_order_and_any_repeats_give_the_same_memberships(self, changes: dict[str, Any]) -> None:
        story = plan(**changes)
        messages = list(Stream(story))
        expected = lists(folded(messages), story.audiences)
        for seed in range(5):
            shuffled = Random(seed).choices(messages, k=500) + messages
            Random(seed).shuffle(shuffled)
            assert lists(folded(shuffled), story.audiences) == expected

    def test_people_move_in_and_out_several_times(self) -> None:
        moves: defaultdict[tuple[str, str], int] = defaultdict(int)
        for message in Stream(plan()):
            for one in message["data"]["segment_events"]:
                moves[message["data"]["_id"], one["id"]] += one["event"] != "change"
        assert sum(count >= 3 for count in moves.values()) > 100

    def test_existing_users_come_first_with_enters_from_before_the_start(self) -> None:
        messages = list(Stream(plan()))
        existing = transitions(messages[:500])
        assert {one["event"] for one in existing} == {"enter"}
        assert all(nanoseconds(one["enter"]) < plan().start for one in existing)
        assert {one["event"] for one in transitions(messages[1500:])} == {"enter", "exit", "change"}

    def test_some_transitions_of_a_person_are_less_than_a_microsecond_apart_or_at_one_instant(self) -> None:
        moments: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for message in Stream(plan(events=10_000)):
            for one in message["data"]["segment_events"]:
                if one["event"] != "change":
                    moments[message["data"]["_id"], one["id"]].append(nanoseconds(one[one["event"]]))
        gaps = {later - sooner for times in moments.values() for sooner, later in pairwise(times)}
        assert {0, 1, 700} <= gaps


class TestTheWire:
    def test_a_message_has_the_documented_shape(self) -> None:
        for message in Stream(plan()):
            assert set(message) == {"id", "data", "meta"}
            assert re.fullmatch(r"\d{1,20}", message["id"])
            assert set(message["data"]) == {"_id", "segment_events"}
            assert set(message["meta"]) == {"object", "subscription_id", "timestamp"}
            assert message["meta"]["object"] == "user"
            assert re.fullmatch(r"[0-9a-f]{32}", message["meta"]["subscription_id"])

    def test_a_transition_carries_its_own_time_and_a_change_none(self) -> None:
        for one in transitions(list(Stream(plan()))):
            assert re.fullmatch(r"[0-9a-f]{32}", one["id"])
            if one["event"] == "change":
                assert set(one) == {"id", "event", "slug"}
            else:
                assert one["event"] in one

    def test_times_have_up_to_nine_digits_and_sometimes_an_offset(self) -> None:
        times = [message["meta"]["timestamp"] for message in Stream(plan())]
        form = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)"
        parts = [re.fullmatch(form, time) for time in times]
        assert all(parts)
        digits = {len(part[1] or "") for part in parts if part}
        assert digits >= {8, 9}
        assert not any((part[1] or "").endswith("0") for part in parts if part)
        assert {"Z", "-07:00", "+05:30"} <= {part[2] for part in parts if part}

    def test_round_times_have_few_digits(self) -> None:
        assert clock.write(clock.SECOND) == "1970-01-01T00:00:01Z"
        assert clock.write(clock.SECOND * 3 // 2, offset_minutes=-420) == "1969-12-31T17:00:01.5-07:00"

    def test_the_top_id_stays_with_the_person(self) -> None:
        ids: defaultdict[str, set[str]] = defaultdict(set)
        for message in Stream(plan()):
            ids[message["data"]["_id"]].add(message["id"])
        assert all(len(values) == 1 for values in ids.values())
        assert len({next(iter(values)) for values in ids.values()}) == len(ids)

    def test_some_messages_hold_an_exit_and_an_enter_and_some_enters_a_future_exit(self) -> None:
        messages = list(Stream(plan()))
        together = [[one["event"] for one in message["data"]["segment_events"]] for message in messages]
        assert ["exit", "enter"] in together
        assert any(one["event"] == "enter" and one.get("exit", "") > "2090" for one in transitions(messages))

    def test_numeric_identifiers_are_numbers_that_a_float_would_spoil(self) -> None:
        numbers = [
            message["data"]["_id"]
            for message in Stream(plan(numeric_identifiers=True))
            if isinstance(message["data"]["_id"], int)
        ]
        assert numbers
        assert any(int(float(number)) != number for number in numbers)

    def test_array_identifiers_only_grow_and_a_change_has_the_new_one(self) -> None:
        known: dict[str, list[str]] = {}
        for message in Stream(plan(identifier_field="_uids", array_identifiers=True)):
            values = message["data"]["_uids"]
            before = known.setdefault(message["id"], values)
            assert values[: len(before)] == before
            if values != before:
                assert {one["event"] for one in message["data"]["segment_events"]} == {"change"}
            known[message["id"]] = values
        assert max(map(len, known.values())) > 3

    def test_cloudevents_have_a_time_and_no_meta(self) -> None:
        message = next(iter(Stream(plan(cloudevents=True))))
        assert message["specversion"] == "1.0"
        assert "meta" not in message
        assert nanoseconds(message["time"]) > plan().start

    def test_full_profiles_keep_the_identifier(self) -> None:
        message = next(iter(Stream(plan(full_profiles=True, identifier_field="email"))))
        assert len(message["data"]) > 8
        assert re.fullmatch(r"[0-9a-f-]{36}", message["data"]["email"])

    def test_slugs_are_unique_and_continue_with_numbers(self) -> None:
        slugs = [audience.slug for audience in audiences(how_many=500, seed=1)]
        assert slugs[0] == "vip_buyers"
        assert "vip_buyers_3" in slugs
        assert len(set(slugs)) == 500

    def test_awkward_slugs_never_get_the_same_odp_id(self) -> None:
        named = audiences(how_many=200, seed=1, awkward=True)
        assert named[0].slug == "VIP-Buyers.2026"
        assert named[0].odp_id == "lytics_vip_buyers_2026"
        assert len({audience.odp_id for audience in named}) == 200

    def test_another_seed_is_another_account(self) -> None:
        first, second = (audiences(how_many=1, seed=seed)[0] for seed in (1, 2))
        assert first.slug == second.slug
        assert first.segment_id != second.segment_id


def message(event: str, time: str, who: Any = "p-1", made_at: str = "2026-01-05T12:00:00Z") -> Message:
    transition = {"id": "a1", "event": event, "slug": "vip"}
    if event != "change":
        transition[event] = time
    return {"data": {"_id": who, "segment_events": [transition]}, "meta": {"timestamp": made_at}}


class TestTheModel:
    def test_a_late_enter_never_readds_a_customer_who_left(self) -> None:
        messages = [message("exit", "2026-01-05T10:00:01Z"), message("enter", "2026-01-05T10:00:00Z")]
        assert folded(messages).others("a1") == ["p-1"]

    def test_a_nanosecond_decides(self) -> None:
        messages = [
            message("enter", "2026-01-05T10:00:00.123456789Z"),
            message("exit", "2026-01-05T10:00:00.123456788Z"),
        ]
        assert folded(messages).members("a1") == ["p-1"]

    def test_an_exit_wins_at_the_same_instant_in_either_order(self) -> None:
        messages = [message("exit", "2026-01-05T10:00:00Z"), message("enter", "2026-01-05T03:00:00.0-07:00")]
        assert folded(messages).members("a1") == folded(messages[::-1]).members("a1") == []

    def test_a_change_asserts_membership_when_it_was_made_and_no_later(self) -> None:
        change = message("change", "", made_at="2026-01-05T10:00:00Z")
        assert folded([change]).members("a1") == ["p-1"]
        assert folded([message("exit", "2026-01-05T10:00:01Z"), change]).members("a1") == []
        assert folded([message("exit", "2026-01-05T09:00:00Z"), change]).members("a1") == ["p-1"]

    def test_each_value_of_an_array_is_a_separate_member(self) -> None:
        messages = [
            message("enter", "2026-01-05T10:00:00Z", ["c-1", "c-2"]),
            message("exit", "2026-01-05T11:00:00Z", ["c-1"]),
        ]
        assert folded(messages).members("a1") == ["c-2"]

    def test_a_big_number_is_kept_to_the_last_digit(self) -> None:
        who = json.loads("9007199254740993")
        assert folded([message("enter", "2026-01-05T10:00:00Z", who)]).members("a1") == ["9007199254740993"]


class TestTheCalls:
    def test_late_calls_are_overtaken_and_repeated_ones_are_the_same_again(self) -> None:
        sent = list(calls(Stream(plan()), batch=10, late=0.1, repeat=0.1, seed=3))
        late = [call for call in sent if call.late]
        repeated = [call for call in sent if call.repeated]
        assert late
        assert repeated
        assert sum(call.events for call in sent if not call.repeated) == 3000
        bodies = [sorted(one["id"] for one in json.loads(call.body)) for call in sent if not call.repeated]
        assert all(sorted(one["id"] for one in json.loads(call.body)) in bodies for call in repeated)

    def test_times_arrive_out_of_order(self) -> None:
        times = [
            max(nanoseconds(one["meta"]["timestamp"]) for one in json.loads(call.body))
            for call in calls(Stream(plan()), batch=10, late=0.1, repeat=0, seed=3)
        ]
        assert sum(later < sooner for sooner, later in pairwise(times)) > 10

    @pytest.mark.parametrize(("rate", "longest"), [(None, LONGEST_DELAY), (10, 20), (0.01, 1), (1000, LONGEST_DELAY)])
    def test_no_more_is_held_back_than_the_longest_delay(self, rate: float | None, longest: int) -> None:
        """With a rate, the longest delay is 20 s."""
        made = 0

        def counted() -> Iterator[Message]:
            nonlocal made
            for one in Stream(plan()):
                made += 1
                yield one

        stream = calls(counted(), batch=10, late=1, repeat=0, seed=3, rate=rate)
        held = [made - 10 * handed_out for handed_out, _ in enumerate(stream, start=1)]
        assert max(held) <= 10 * (longest + 1)

    def test_a_batch_of_one_is_still_an_array_and_batch_one_sends_objects(self) -> None:
        last = list(calls(Stream(plan(events=1)), batch=300, late=0, repeat=0, seed=3))[-1]
        assert isinstance(json.loads(last.body), list)
        only = next(iter(calls(Stream(plan()), batch=1, late=0, repeat=0, seed=3)))
        assert isinstance(json.loads(only.body), dict)


class TestDelivery:
    def test_the_delivered_events_give_the_memberships_of_the_file(
        self, send: Any, receiver: Receiver, tmp_path: Path
    ) -> None:
        file = tmp_path / "memberships.json"
        receiver.answers = [Answer(500), CUT, Answer(503, Retry_After="0"), Answer(429)] * 5
        code, summary = send(
            "--events",
            5000,
            "--batch",
            20,
            "--late",
            0.3,
            "--repeat",
            0.3,
            "--array-identifiers",
            "--memberships",
            file,
        )
        assert code == 0
        assert summary["memberships_file"] == str(file)
        arrived = folded(receiver.messages)
        for slug, facts in json.loads(file.read_text())["audiences"].items():
            assert set(facts) == {"segment_id", "odp_id", "members", "others"}
            assert facts["odp_id"] == f"lytics_{slug}"
            assert facts["members"] == arrived.members(facts["segment_id"])
            assert facts["others"] == arrived.others(facts["segment_id"])
            assert facts["members"]
            assert facts["others"]

    def test_the_summary_counts_are_right(self, send: Any, receiver: Receiver) -> None:
        receiver.answers = [Answer(500), CUT]
        _, summary = send("--events", 2000, "--audiences", 3, "--batch", 10, "--repeat", 0.1, "--late", 0.1)
        attempts = len(receiver.bodies)
        assert list(summary) == [
            "calls",
            "events",
            "repeated_calls",
            "late_calls",
            "retried",
            "omitted",
            "seconds",
            "answers",
            "audiences",
            "memberships_file",
        ]
        assert summary["calls"] == attempts - 2
        assert summary["retried"] == 2
        assert summary["answers"] == {"200": attempts - 2, "500": 1, "no answer": 1}
        assert summary["repeated_calls"] > 0
        assert summary["late_calls"] > 0
        assert [set(one) for one in summary["audiences"]] == [{"segment_id", "slug", "odp_id", "members"}] * 3
        assert summary["memberships_file"] is None

    def test_the_authorization_is_sent_as_it_was_typed(self, send: Any, receiver: Receiver) -> None:
        send("--events", 10, "--authorization", "Bearer  lys_abc")
        assert receiver.headers[0]["Authorization"] == "Bearer  lys_abc"
        assert receiver.headers[0]["Content-Type"] == "application/json"

    def test_a_pasted_header_line_is_understood(self, send: Any, receiver: Receiver) -> None:
        send("--events", 10, "--authorization", "Authorization: lys_abc")
        assert receiver.headers[0]["Authorization"] == "lys_abc"

    @pytest.mark.parametrize("callers", [1, 7])
    def test_callers_call_simultaneously_each_over_one_connection(
        self, send: Any, receiver: Receiver, callers: int
    ) -> None:
        everyone = threading.Barrier(callers)
        receiver.hold = lambda: everyone.wait(PATIENCE) if len(receiver.bodies) <= callers else None
        code, _ = send("--events", 2000, "--batch", 10, "--callers", callers)
        assert code == 0
        assert receiver.most_inside == callers
        assert len(receiver.connections) == callers

    def test_a_rate_is_kept(self, send: Any) -> None:
        _, summary = send("--events", 300, "--batch", 10, "--rate", 1000)
        assert summary["seconds"] > 0.25

    def test_the_stream_is_generated_only_as_fast_as_it_is_consumed(self, receiver: Receiver) -> None:
        made = 0
        release = threading.Event()
        receiver.hold = release.wait

        def counted() -> Iterator[Message]:
            nonlocal made
            for one in Stream(plan()):
                made += 1
                yield one

        job = Job(retry_scale=0, notice=lambda _: None)
        sender = Sender(url=receiver.url, authorization="", job=job, timeout=30, done=lambda _: None)
        stream = calls(counted(), batch=1, late=0, repeat=0, seed=1)
        sending = threading.Thread(target=sender.send, args=(stream,), kwargs={"callers": 3})
        sending.start()
        while receiver.inside < 3:
            sending.join(0.01)
        sending.join(0.3)
        assert made <= 3 + 2 * 3 + 1
        release.set()
        sending.join()
        assert len(receiver.bodies) == made


class TestAnswers:
    @pytest.mark.parametrize("status", [201, 202, 204, 301, 401, 403, 409, 429, 500, 502, 503])
    def test_anything_but_200_is_sent_again(self, send: Any, receiver: Receiver, status: int) -> None:
        receiver.answers = [Answer(status)] * 3
        code, summary = send("--events", 20, "--repeat", 0)
        assert code == 0
        assert summary["retried"] == 3
        assert summary["answers"] == {"200": 1, str(status): 3}
        assert receiver.bodies[1:] == receiver.bodies[:1] * 3

    @pytest.mark.parametrize("status", [400, 404, 413])
    def test_some_answers_lose_the_call_for_good(
        self, receiver: Receiver, capsys: pytest.CaptureFixture[str], status: int
    ) -> None:
        receiver.answers = [Answer(status, Retry_After="1")]
        code = main(["--url", receiver.url, "--events", "300", "--batch", "10", "--repeat", "0", "--json"])
        captured = capsys.readouterr()
        summary = json.loads(captured.out)
        assert code == 1
        assert summary["omitted"] == summary["answers"][str(status)] == 1
        assert summary["retried"] == 0
        assert f"the answer was {status}" in captured.err

    def test_a_cut_connection_is_tried_again(self, send: Any, receiver: Receiver) -> None:
        receiver.answers = [CUT, CUT]
        code, summary = send("--events", 20, "--repeat", 0)
        assert code == 0
        assert summary["answers"] == {"200": 1, "no answer": 2}

    def test_a_slow_answer_is_tried_again(self, send: Any, receiver: Receiver) -> None:
        receiver.hold = lambda: threading.Event().wait(0.5) if len(receiver.bodies) == 1 else None
        code, summary = send("--events", 20, "--repeat", 0, "--timeout", 0.1)
        assert code == 0
        assert summary["answers"] == {"200": 1, "no answer": 1}

    @pytest.mark.parametrize("as_date", [False, True])
    def test_retry_after_puts_the_whole_job_to_sleep(self, send: Any, receiver: Receiver, as_date: bool) -> None:
        later = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        receiver.answers = [Answer(503, Retry_After=later if as_date else "1")]
        code, _ = send("--events", 500, "--batch", 10, "--callers", 4)
        assert code == 0
        gaps = [later - sooner for sooner, later in pairwise(receiver.times)]
        assert max(gaps) > 0.9

    def test_retry_after_is_never_counted_as_an_error(self, send: Any, receiver: Receiver) -> None:
        receiver.answers = [Answer(503, Retry_After="0")] * 12
        # On this scale the tenth error would put the job to sleep for a day.
        code, summary = send("--events", 20, "--repeat", 0, "--retry-scale", 1500)
        assert code == 0
        assert summary["retried"] == 12

    @pytest.mark.parametrize("header", [None, "soon", "", "-5", "1.5"])
    def test_a_retry_after_that_says_nothing_is_as_good_as_absent(self, header: str | None) -> None:
        assert retry_after(header) is None

    def test_a_retry_after_in_the_past_is_now(self) -> None:
        assert retry_after("Mon, 05 Jan 2026 10:00:00 GMT") == 0


class TestTheJob:
    def test_it_sleeps_a_minute_and_doubles_until_it_fails_after_two_hours(self) -> None:
        slept: list[float] = []

        class Sleepless(Job):
            def sleep(self, seconds: float, why: str) -> None:
                slept.append(seconds)

        job = Sleepless(retry_scale=1, notice=lambda _: None)
        for nap in range(1, 8):
            job.error(nap, "the answer was 500")
        with pytest.raises(Stopped):
            job.error(8, "the answer was 500")
        assert slept == [60, 120, 240, 480, 960, 1920, 3840]
        assert job.failed == "after 80 tries of one request the answer was 500"

    def test_ten_failures_of_a_request_put_all_callers_to_sleep(self, send: Any, receiver: Receiver) -> None:
        receiver.answers = [Answer(500)] * 10
        code, summary = send("--events", 100, "--batch", 10, "--callers", 1, "--repeat", 0, "--retry-scale", 0.005)
        assert code == 0
        assert summary["retried"] == 10
        assert receiver.times[10] - receiver.times[9] > 0.29

    def test_a_failed_job_says_so_and_writes_no_memberships(
        self, receiver: Receiver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        receiver.answers = [Answer(500)] * 10_000
        file = tmp_path / "memberships.json"
        code = main(
            ["--url", receiver.url, "--events", "300", "--retry-scale", "0", "--json", "--memberships", str(file)]
        )
        captured = capsys.readouterr()
        assert code == 1
        assert "The job has failed: after 80 tries of one request the answer was 500." in captured.err
        assert json.loads(captured.out)["memberships_file"] is None
        assert list(tmp_path.iterdir()) == []


def run(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sandbox.lytics", *arguments],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


class TestTheCommand:
    def test_an_unreachable_receiver_is_reported_in_one_sentence(self) -> None:
        with Receiver() as closed:
            url = closed.url
        ended = run("--url", url, "--events", "10", "--retry-scale", "0")
        assert ended.returncode == 1
        assert ended.stderr == (
            "The job has failed: after 80 tries of one request nobody answered (connection refused). "
            "Lytics would leave it so until someone restarts it.\n"
        )

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ([], "--url is needed"),
            (["--url", "webhook"], "is not an http or https address"),
            (["--url", "http://x", "--events", "0"], "is less than 1"),
            (["--url", "http://x", "--events", "many"], "'many'"),
            (["--url", "http://x", "--late", "2"], "is not between 0 and 1"),
            (["--url", "http://x", "--authorization", "a\nb"], "a header cannot carry"),
            (["--dry-run", "--memberships", "/nowhere/at/all"], "cannot be written to"),
        ],
    )
    def test_bad_arguments_are_one_sentence(self, arguments: list[str], complaint: str) -> None:
        ended = run(*arguments)
        assert ended.returncode == 2
        assert complaint in ended.stderr.splitlines()[-1]
        assert "Traceback" not in ended.stderr

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--url", "http://[::1/x"],
            ["--url", "http://x:99999/"],
            *(["--dry-run", name, "inf"] for name in ("--rate", "--timeout", "--retry-scale")),
            *(["--dry-run", "--start", day] for day in ("0001-01-01", "2300-01-01")),
            *(["--dry-run", "--identifier-field", name] for name in ("segment_events", "")),
            ["--dry-run", "--state", "one", "--memberships", "one"],
        ],
        ids=" ".join,
    )
    def test_what_would_end_in_a_traceback_or_in_nonsense_is_refused(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--events", "10"])
        assert ended.value.code == 2
        assert "error: " in capsys.readouterr().err.splitlines()[-1]

    def test_a_state_that_is_another_file_is_reported(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        state = tmp_path / "notes.txt"
        state.write_text("notes, and no database of SQLite")
        assert main(["--dry-run", "--events", "10", "--state", str(state)]) == 1
        assert capsys.readouterr().err.endswith("can't be used as --state: file is not a database\n")

    def test_a_dry_run_sends_nothing_and_prints_the_expected_result(self, tmp_path: Path) -> None:
        file = tmp_path / "memberships.json"
        ended = run("--dry-run", "--events", "500", "--audiences", "3", "--json", "--memberships", str(file))
        summary = json.loads(ended.stdout)
        assert ended.returncode == 0
        assert summary["calls"] == 0
        assert summary["answers"] == {}
        written = json.loads(file.read_text())["audiences"]
        assert {one["slug"]: one["members"] for one in summary["audiences"]} == {
            slug: len(facts["members"]) for slug, facts in written.items()
        }

    def test_progress_for_programs_is_a_line_at_most_ten_times_a_second(self, receiver: Receiver) -> None:
        ended = run(
            "--url", receiver.url, "--events", "2000", "--batch", "10", "--rate", "4000", "--progress", "json", "--json"
        )
        seconds = json.loads(ended.stdout)["seconds"]
        lines = [json.loads(line) for line in ended.stderr.splitlines()]
        assert all(set(line) == {"sent", "total"} for line in lines)
        assert lines[-1] == {"sent": 2000, "total": 2000}
        assert lines == sorted(lines, key=lambda line: line["sent"])
        assert 3 < len(lines) <= 10 * seconds + 2

    def test_the_bar_ends_full_and_the_table_names_each_audience(self, receiver: Receiver) -> None:
        ended = run("--url", receiver.url, "--events", "300", "--audiences", "2", "--progress", "bar")
        assert "100%  300 of 300 events" in ended.stderr
        assert re.search(r"^vip_buyers +\d+$", ended.stdout, re.MULTILINE)
        assert "Answers: 1 × 200" in ended.stdout or "Answers: 2 × 200" in ended.stdout

    def test_ctrl_c_ends_it_at_once_without_a_traceback(self, receiver: Receiver) -> None:
        receiver.hold = threading.Event().wait
        command = [sys.executable, "-m", "sandbox.lytics", "--url", receiver.url, "--timeout", "600"]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sender:
            while not receiver.inside:
                pass
            sender.send_signal(signal.SIGINT)
            _, complaint = sender.communicate(timeout=10)
        assert sender.returncode == 130
        assert complaint == "Interrupted before everything was sent.\n"
