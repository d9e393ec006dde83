"""The brake: how long it holds an install, and that nobody's events are blamed."""

from datetime import timedelta

import pytest
from django.utils.timezone import now

from audiences import brake
from audiences.models import Install
from odp.outcomes import Answer, Outcome
from tests.delivering import make_install
from tests.threads import together

BOOM = Answer(Outcome.RETRY_LATER, "500: boom", 500)
FORBIDDEN = Answer(Outcome.UNAUTHORISED, "403: Forbidden", 403, slow_probe=True)


@pytest.mark.parametrize("failures", [0, 1, 5, 40, 4_000_000])
def test_the_pause_is_spread_from_nothing_to_a_bound_that_doubles(settings: object, failures: int) -> None:
    bound = min(60, 0.5 * 2 ** min(failures, 30))
    pauses = [brake.pause_seconds(failures=failures, answer=BOOM) for _ in range(300)]
    assert 0 <= min(pauses) < bound * 0.1
    assert bound * 0.9 < max(pauses) <= bound


def test_what_odp_asked_for_is_the_least() -> None:
    answer = Answer(Outcome.RETRY_LATER, "429", 429, retry_after=120.0)
    assert brake.pause_seconds(failures=0, answer=answer) == 120.0


def test_a_refused_key_is_probed_slowly() -> None:
    assert brake.pause_seconds(failures=0, answer=FORBIDDEN) == 30.0


@pytest.mark.django_db
def test_it_says_until_when_since_when_and_why_and_release_ends_all_of_it() -> None:
    install = make_install()
    brake.apply(install, FORBIDDEN)
    install.refresh_from_db()
    assert install.brake_until_at is not None
    assert install.brake_until_at > now() + timedelta(seconds=25)
    assert (install.brake_failures, install.brake_reason) == (1, "403: Forbidden")
    brake.release(install)
    install.refresh_from_db()
    assert (install.brake_failures, install.brake_reason, install.brake_since_at) == (0, "", None)


@pytest.mark.django_db
def test_a_longer_wait_is_not_shortened_by_a_shorter_one() -> None:
    install = make_install()
    brake.apply(install, Answer(Outcome.RETRY_LATER, "429", 429, retry_after=600.0))
    install.refresh_from_db()
    long = install.brake_until_at
    brake.apply(install, BOOM)
    install.refresh_from_db()
    assert install.brake_until_at == long


@pytest.mark.django_db(transaction=True)
def test_requests_that_fail_together_count_once() -> None:
    install = make_install()
    answer = Answer(Outcome.RETRY_LATER, "503", 503, retry_after=60.0)
    together(*[lambda: brake.apply(install, answer)] * 8)
    assert Install.objects.get().brake_failures == 1
