"""Many installs with many audiences, whose states are spread as in a service in use."""

from datetime import timedelta

from django.db import connection
from django.utils.timezone import now

from audiences.models import Audience, Install, Lane, Parked

CAUSES = ("field 'tier' is a number", "list_id 'vip' is not a list", "the account has no free field")
LONG = "spring-sale-2026-" * 7


def fill(installs: int, audiences: int) -> None:
    """Add installs until there are ``installs``, each with audiences until it has ``audiences``."""
    there = Install.objects.count()
    at = now()
    Install.objects.bulk_create(
        Install(
            name=f"Shop {number:02} {LONG[:85] if number % 10 == 4 else ''}".strip(),
            odp_api_key=f"public{number}.private",
            odp_host="http://127.0.0.1:9",
            key_accepted_at=at,
            **_backoff(number),
        )
        for number in range(there, installs)
    )
    made = []
    for install in Install.objects.order_by("pk"):
        first = install.audiences.count()
        made += [_audience(install, number) for number in range(first, audiences)]
    Audience.objects.bulk_create(made, batch_size=2_000)
    Lane.objects.bulk_create([_lane(audience, place) for place, audience in enumerate(made)], batch_size=2_000)
    Parked.objects.bulk_create(
        Parked(install=install, reason="no_identifier") for install in Install.objects.all() for _ in range(3)
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def _backoff(number: int) -> dict[str, object]:
    """Every seventh install is on hold."""
    if number % 7 != 3:
        return {}
    return {
        "backoff_since_at": now(),
        "backoff_until_at": now() + timedelta(minutes=5),
        "backoff_reason": "HTTP 503",
        "backoff_failures": 3,
    }


def _audience(install: Install, number: int) -> Audience:
    slug = f"{LONG if number % 50 == 4 else 'segment-'}{number}"
    on_hold = number % 40 == 2
    return Audience(
        install=install,
        segment_id=f"s{number}",
        slug=slug,
        latest_slug=slug,
        odp_id=f"lytics_{slug}",
        provisioned_at=None if on_hold else now(),
        last_sequence=number % 4,
        hold_since_at=now() if on_hold else None,
        hold_until_at=now() if on_hold else None,
        hold_reason="HTTP 503" if on_hold else "",
        hold_failures=int(on_hold),
    )


def _lane(audience: Audience, place: int) -> Lane:
    lane = Lane(audience=audience, member_count=place * 37 % 10_000, last_served_at=now())
    if place % 4 != 3:
        lane.delivered_sequence = audience.last_sequence
    if place % 25 == 1:
        lane.blocked_at, lane.block_reason = now(), CAUSES[place % 3]
    elif place % 60 == 3:
        lane.paused_at, lane.paused_by, lane.pause_reason = now(), "kim", "The campaign is over."
    elif place % 90 == 7:
        lane.fault_since_at = lane.fault_until_at = now()
        lane.fault_reason = "KeyError"
    return lane
