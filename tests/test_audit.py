"""The audit finds each broken truth: every test breaks one of them in the tables, behind the code's back."""

import pytest
from django.db import connection

from audiences.models import Audience, Install
from audiences.operations import audit
from odp.outcomes import Outcome
from tests.delivering import claim, enter, make_audience, make_install

pytestmark = pytest.mark.django_db(transaction=True)

GAP, CURSOR, LEDGER, MEMBERS, HISTORY, REFUSED, AHEAD = audit.TRUTHS


@pytest.fixture
def gold() -> Audience:
    """An audience with five events, of which two are delivered and one is rejected."""
    from audiences.delivery import leases, reading, settling

    install = make_install()
    made = make_audience(install, "gold")
    enter(made, "a", "b", "c", "d", "e")
    lease = claim(install, capacity=3)
    entries, ledger = reading.read(lease)
    *accepted, refused = entries[made.pk]
    result = leases.Result(lease.spans[0], events=3, accepted=accepted, rejected=[(refused, "no")])
    settling.settle(lease, [result], ledger)
    return made


def truths() -> set[str]:
    return {finding.truth for finding in audit.audit()}


def test_it_is_quiet_when_all_is_well(gold: Audience) -> None:
    assert audit.audit() == []


@pytest.mark.parametrize(
    ("damage", "broken"),
    [
        ("DELETE FROM audiences_event WHERE sequence = 1", GAP),
        ("DELETE FROM audiences_event WHERE sequence = 4", GAP),
        ("DELETE FROM audiences_event WHERE sequence = 5", GAP),
        ("DELETE FROM audiences_event", GAP),
        ("UPDATE audiences_lane SET delivered_sequence = 9", CURSOR),
        ("UPDATE audiences_membership SET is_member = false WHERE identifier = 'a'", LEDGER),
        ("UPDATE audiences_membership SET occurred_ns = 7 WHERE identifier = 'a'", LEDGER),
        ("DELETE FROM audiences_membership WHERE identifier = 'b'", LEDGER),
        ("UPDATE audiences_membership SET identifier = 'nobody' WHERE identifier = 'b'", LEDGER),
        (
            "INSERT INTO audiences_membership (audience_id, identifier, is_member, occurred_ns, sequence, refused)"
            " SELECT id, 'nobody', false, 1, 1, false FROM audiences_audience",
            LEDGER,
        ),
        ("UPDATE audiences_lane SET delivered_sequence = 5", LEDGER),
        # The fixture leaves three members.
        ("UPDATE audiences_lane SET member_count = 2", MEMBERS),
        ("UPDATE audiences_lane SET member_count = 4", MEMBERS),
        ("DELETE FROM audiences_run", HISTORY),
        *(
            (f"UPDATE audiences_run SET outcome = '{outcome.value}'", HISTORY)
            for outcome in Outcome
            if outcome not in (Outcome.DELIVERED, Outcome.REJECTED)
        ),
        ("UPDATE audiences_run SET last_sequence = 2", HISTORY),
        ("UPDATE audiences_run SET first_sequence = 2", HISTORY),
        ("UPDATE audiences_membership SET refused = false", REFUSED),
        ("UPDATE audiences_membership SET occurred_ns = 7226582400000000000 WHERE identifier = 'a'", AHEAD),
    ],
)
def test_it_finds_each_violated_invariant(gold: Audience, damage: str, broken: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(damage)
        assert cursor.rowcount
    assert broken in truths()
    assert {finding.audience for finding in audit.audit()} == {"lytics_gold"}


def test_installs_are_audited_together(gold: Audience) -> None:
    other = make_audience(make_install(name="Other"), "gold")
    enter(other, "z")
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM audiences_event WHERE audience_id = %s", [other.pk])
    assert truths() == {GAP}
    assert Install.objects.count() == 2
