"""Constraints of the schema: PostgreSQL rejects an attempt to violate each of them."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.apps import apps
from django.db import IntegrityError, connection, transaction
from django.utils.timezone import now

from audiences.models import (
    Again,
    Audience,
    AudienceMove,
    Audit,
    Delivery,
    Difference,
    Event,
    Forgotten,
    GuidedChange,
    Install,
    JobPresence,
    Lane,
    Membership,
    Minute,
    Pace,
    Parked,
    Receipt,
    Resend,
    Retirement,
    Run,
    Skip,
    Token,
    Trial,
    Trouble,
    TroubleMessage,
    Twin,
)

pytestmark = pytest.mark.django_db


def an_audience(name: str = "gold_club", **values: Any) -> Audience:
    names = {"segment_id": name, "slug": name, "latest_slug": name, "odp_id": f"lytics_{name}"}
    made = Audience.objects.create(install=Install.objects.get(), **{**names, **values})
    Lane.objects.create(audience=made)
    return made


def change(model: type[Any], **values: Any) -> None:
    model.objects.update(**values)


def a_token(**values: Any) -> None:
    Token.objects.create(**{"install": Install.objects.get(), "slot": 2, "digest": "d", "secret": "s", **values})


def an_event(**values: Any) -> None:
    Event.objects.create(
        **{
            "audience": Audience.objects.first() or an_audience(),
            "sequence": 1,
            "identifier": "kim",
            "kind": 1,
            "occurred_ns": 0,
        }
        | {"received_at": now(), **values}
    )


def a_delivery(**values: Any) -> None:
    Delivery.objects.create(
        **{"install": Install.objects.get(), "endpoint": "/", "opened_at": now(), "items": 1, "bytes": 1, **values}
    )


def a_skip(**values: Any) -> Skip:
    return Skip.objects.create(**{"install": Install.objects.get(), "by": "me", "reason": "restored", **values})


def a_run(**values: Any) -> None:
    Run.objects.create(
        **{"audience": Audience.objects.first() or an_audience(), "first_sequence": 1, "last_sequence": 1}
        | {"sent": 1, "folded": 0, "opened_at": now(), **values}
    )


def a_parked_item(**values: Any) -> None:
    Parked.objects.create(**{"install": Install.objects.get(), "reason": "unknown_event", **values})


def a_resend(**values: Any) -> None:
    audience = None if values.get("kind") == "release" else Audience.objects.first() or an_audience()
    usual = {"install": Install.objects.get(), "audience": audience, "kind": "resync", "total": 1}
    Resend.objects.create(**{**usual, "by": "kim", "reason": "why not", **values})


def a_retirement(**values: Any) -> None:
    audience = Audience.objects.first() or an_audience()
    Retirement.objects.create(
        **{"audience": audience, "by": "kim", "reason": "left the job", "began_sequence": 0, "total": 1, **values}
    )


def a_change(**values: Any) -> None:
    usual = {"install": Install.objects.get(), "kind": "mechanism", "before": "attribute", "after": "list"}
    GuidedChange.objects.create(**{**usual, "by": "kim", "reason": "why not", **values})


def a_move() -> None:
    if not GuidedChange.objects.exists():
        a_change(kind="account")
        an_audience("silver")
    there = {"change": GuidedChange.objects.get(), "audience": Audience.objects.get(slug="silver")}
    AudienceMove.objects.create(**there, odp_id="lytics_silver")


def a_trouble(**values: Any) -> None:
    usual = {"key": "blocked/1/x", "kind": "blocked", "what": "gold is blocked", "since_at": now()}
    Trouble.objects.create(**{**usual, "last_seen_at": now(), **values})


def a_message(**values: Any) -> None:
    usual = {"event": "test", "channel": "email", "content": {}, "created_at": now(), "next_try_at": now()}
    TroubleMessage.objects.create(**{**usual, **values})


def two_open_refusals() -> None:
    audience = an_audience()
    for sequence in (1, 2):
        a_parked_item(audience=audience, identifier="kim", sequence=sequence)


def twice(make: Callable[..., Any], **values: Any) -> None:
    make(**values)
    make(**values)


def lane(**values: Any) -> None:
    an_audience()
    change(Lane, **values)


def a_minute() -> Minute:
    return Minute.objects.create(
        install=Install.objects.get(), minute=datetime(2026, 2, 1, tzinfo=UTC), received=1, parked=0, delivered=1
    )


def an_audit() -> Audit:
    install = Install.objects.get()
    return Audit.objects.create(install=install, audience=an_audience(), mode="full", ended_at=now())


def a_forgotten(**values: Any) -> Forgotten:
    return Forgotten.objects.create(install=Install.objects.get(), digest="d", by="kim", **values)


BROKEN: dict[str, list[Callable[[], Any]]] = {
    "braked_install_says_why": [
        lambda: change(Install, backoff_until_at=now(), backoff_since_at=now(), backoff_failures=1),
        lambda: change(Install, backoff_until_at=now(), backoff_failures=1, backoff_reason="503"),
        lambda: change(Install, backoff_until_at=now(), backoff_since_at=now(), backoff_reason="503"),
        lambda: change(Install, backoff_failures=1),
        lambda: change(Install, backoff_since_at=now()),
    ],
    "batch_size_within_odp_limit": [lambda: change(Install, batch_size=501), lambda: change(Install, batch_size=0)],
    "at_least_one_request_in_flight": [lambda: change(Install, max_in_flight=0)],
    "token_slot_is_one_or_two": [lambda: a_token(slot=3), lambda: a_token(slot=0)],
    "two_live_tokens_per_install": [lambda: a_token(slot=1)],
    "audiences_token_digest_key": [lambda: a_token(digest=Token.objects.get().digest)],
    "audiences_install_public_id_key": [
        lambda: Install.objects.create(name="x", odp_api_key="k", public_id=Install.objects.get().public_id)
    ],
    "one_audience_per_segment": [lambda: (an_audience("a"), an_audience("b", segment_id="a"))],
    "one_audience_per_odp_id": [lambda: (an_audience("a"), an_audience("b", odp_id="lytics_a"))],
    "sequence_starts_at_zero": [lambda: an_audience(last_sequence=-1)],
    "making_token_and_end_together": [
        lambda: an_audience(making_token=uuid.uuid4()),
        lambda: an_audience(making_until_at=now()),
    ],
    "audience_on_hold_says_why": [
        lambda: an_audience(hold_until_at=now(), hold_since_at=now(), hold_failures=1),
        lambda: an_audience(hold_until_at=now(), hold_failures=1, hold_reason="503"),
        lambda: an_audience(hold_until_at=now(), hold_since_at=now(), hold_reason="503"),
        lambda: an_audience(hold_failures=1),
        lambda: an_audience(hold_reason="503"),
    ],
    "twin_finding_says_what": [
        lambda: Twin.objects.create(audience=an_audience(), looked_at=now(), finding="missing", since_at=now()),
        lambda: Twin.objects.create(audience=an_audience(), looked_at=now(), problem="gone"),
    ],
    "deleted_audience_is_gone": [
        lambda: JobPresence.objects.create(audience=an_audience(), seen_at=now(), job_id="job", is_deleted=True)
    ],
    "one_open_trouble_per_key": [lambda: twice(a_trouble)],
    "mute_says_who": [lambda: a_trouble(muted_until=now()), lambda: a_trouble(muted_by="kim")],
    "message_has_one_end": [lambda: a_message(sent_at=now(), given_up_at=now())],
    "one_unfinished_change_per_install": [lambda: twice(a_change)],
    "change_says_who_and_why": [lambda: a_change(by=""), lambda: a_change(reason="")],
    "change_lease_token_and_end_together": [lambda: a_change(lease_until_at=now())],
    "change_in_work_has_an_audience": [
        lambda: a_change(phase="check"),
        lambda: a_change(audience=an_audience()),
    ],
    "ended_change_keeps_no_key": [lambda: a_change(ended_at=now(), other_api_key="public.secret")],
    "one_move_per_change": [lambda: twice(a_move)],
    "retired_lane_has_an_end": [lambda: lane(retired_at=now())],
    "one_retirement_per_audience": [lambda: twice(a_retirement)],
    "retirement_says_who_and_why": [lambda: a_retirement(by=""), lambda: a_retirement(reason="")],
    "retirement_ends_when_emptied": [lambda: a_retirement(ended_at=now())],
    "undone_retirement_says_by_whom": [
        lambda: a_retirement(undone_at=now()),
        lambda: a_retirement(undone_by="kim"),
        lambda: a_retirement(restored_at=now()),
    ],
    "lifted_block_says_since_when": [
        lambda: lane(lifted_since_at=now()),
        lambda: lane(lifted_reason="no"),
    ],
    "faulty_lane_says_why": [
        lambda: lane(fault_since_at=now(), fault_until_at=now()),
        lambda: lane(fault_since_at=now(), fault_reason="no"),
        lambda: lane(fault_until_at=now(), fault_reason="no"),
        lambda: lane(fault_reason="no"),
    ],
    "lease_token_and_expiry_together": [
        lambda: lane(lease_token=uuid.uuid4()),
        lambda: lane(lease_expires_at=now()),
    ],
    "paused_lane_says_who_and_why": [
        lambda: lane(paused_at=now()),
        lambda: lane(paused_at=now(), paused_by="kim"),
        lambda: lane(paused_at=now(), pause_reason="why not"),
        lambda: lane(paused_by="kim"),
        lambda: lane(pause_reason="why not"),
    ],
    "blocked_lane_says_why": [lambda: lane(blocked_at=now()), lambda: lane(block_reason="no such field")],
    "cursor_starts_at_zero": [lambda: lane(delivered_sequence=-1)],
    "no_negative_member_count": [lambda: lane(member_count=-1)],
    "event_sequence_starts_at_one": [lambda: an_event(sequence=0)],
    "event_kind_is_known": [lambda: an_event(kind=3), lambda: an_event(kind=-1)],
    "audiences_event_1_pkey": [lambda: twice(an_event)],
    "audiences_membership_pkey": [
        lambda: [
            Membership.objects.bulk_create(
                [Membership(audience_id=1, identifier="kim", is_member=True, occurred_ns=0, sequence=1)]
            )
            for _ in range(2)
        ]
    ],
    "closed_delivery_has_outcome": [lambda: a_delivery(closed_at=now()), lambda: a_delivery(outcome="delivered")],
    "one_open_run_per_lane": [lambda: twice(a_run)],
    "again_is_not_reversed": [
        lambda: Again.objects.create(audience_id=1, first_sequence=2, last_sequence=1, cause="replay"),
        lambda: Again.objects.create(audience_id=1, first_sequence=0, last_sequence=1, cause="replay"),
    ],
    "run_is_not_reversed": [lambda: a_run(first_sequence=2, last_sequence=1)],
    "closed_run_has_outcome": [lambda: a_run(closed_at=now()), lambda: a_run(outcome="delivered")],
    "parked_item_says_why": [lambda: a_parked_item(reason="")],
    "closed_parked_item_says_how": [
        lambda: a_parked_item(closed_at=now()),
        lambda: a_parked_item(resolution="released"),
    ],
    "one_open_refusal_per_membership": [two_open_refusals],
    "one_trial_at_a_time": [lambda: twice(Trial.objects.create, install=Install.objects.get(), identifier="kim")],
    "one_unfinished_resend_per_audience_and_kind": [
        lambda: twice(a_resend),
        lambda: twice(a_resend, kind="replay", received_from=now(), received_to=now() + timedelta(hours=1)),
    ],
    "one_unfinished_release_per_install_and_reason": [
        lambda: twice(a_resend, kind="release", parked_reason="no_identifier")
    ],
    "resend_says_of_what": [
        lambda: a_resend(audience=None),
        lambda: a_resend(kind="release"),
        lambda: a_resend(kind="release", parked_reason="no_identifier", audience=an_audience()),
        lambda: a_resend(kind="replay"),
        lambda: a_resend(kind="replay", received_from=now()),
        lambda: a_resend(kind="replay", received_from=now(), received_to=now() - timedelta(hours=1)),
        lambda: a_resend(kind="regret"),
    ],
    "resend_says_who_and_why": [lambda: a_resend(by=""), lambda: a_resend(reason="")],
    "stopped_resend_has_ended": [lambda: a_resend(stopped_by="kim")],
    "one_row_per_minute": [lambda: twice(a_minute)],
    "skip_says_who_and_why": [lambda: a_skip(by=""), lambda: a_skip(reason="")],
    "skipped_run_says_who_and_why": [
        lambda: a_run(outcome="skipped", closed_at=now()),
        lambda: a_run(outcome="delivered", closed_at=now(), skip=a_skip()),
    ],
    "one_unfinished_audit_per_audience": [
        lambda: twice(Audit.objects.create, install=Install.objects.get(), audience=an_audience(), mode="full")
    ],
    "one_difference_per_person_and_kind": [
        lambda: twice(Difference.objects.create, audit=an_audit(), identifier="kim", kind="not_here")
    ],
    "one_unfinished_forgetting_per_person": [lambda: [a_forgotten(token="a"), a_forgotten(token="b")]],
    "forgotten_person_has_no_identifier": [lambda: a_forgotten(token="a", ended_at=now(), identifier="kim")],
    "one_pace_per_endpoint": [
        lambda: twice(Pace.objects.create, install=Install.objects.get(), endpoint="p", line_at=now(), gate_at=now())
    ],
}


@pytest.mark.parametrize(
    ("name", "attempt"), [(name, attempt) for name, attempts in BROKEN.items() for attempt in attempts]
)
def test_postgresql_refuses_it(install: Install, name: str, attempt: Callable[[], Any]) -> None:
    with pytest.raises(IntegrityError, match=f'"{name}"'), transaction.atomic():
        attempt()


def test_every_constraint_is_tried() -> None:
    declared = {one.name for model in apps.get_app_config("audiences").get_models() for one in model._meta.constraints}
    assert declared - set(BROKEN) == set()


@pytest.mark.parametrize("model", [Audience, Lane, Receipt, Event, Delivery, Run, Parked, Resend])
def test_deleting_a_row_deletes_no_history_with_it(install: Install, model: type[Any]) -> None:
    """No ON DELETE CASCADE, neither in PostgreSQL nor in the models, towards what an operator reads."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT conname FROM pg_constraint WHERE contype = 'f' AND conrelid = %s::regclass AND confdeltype <> 'a'",
            [model._meta.db_table],
        )
        assert cursor.fetchall() == []
    rules = {key.remote_field.on_delete.__name__ for key in model._meta.fields if key.is_relation}
    assert rules <= {"PROTECT", "DO_NOTHING"}
