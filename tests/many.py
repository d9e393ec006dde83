"""Many installs with many audiences, whose states are spread as in a service in use, and the pages that show them."""

from datetime import timedelta

from django.db import connection
from django.db.models import Model
from django.urls import reverse
from django.utils.timezone import now

from audiences import naming
from audiences.admin.audiences import AudienceAdmin
from audiences.admin.installs import InstallAdmin
from audiences.front import lines
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
    first = Install.objects.earliest("pk")
    made = [_audience(first, number) for number in range(first.audiences.count(), audiences)]
    Audience.objects.bulk_create(made)
    Lane.objects.bulk_create([_lane(audience, place) for place, audience in enumerate(made)])
    _copy_audiences(first)
    Parked.objects.bulk_create(
        Parked(install=install, reason="no_identifier") for install in Install.objects.all() for _ in range(3)
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def _copy_audiences(first: Install) -> None:
    """Give the other installs the audiences of the first one that they don't have."""
    audience = ", ".join(column for column in _columns(Audience) if column not in ("id", "install_id"))
    lane = ", ".join(column for column in _columns(Lane) if column != "audience_id")
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO audiences_audience (install_id, {audience})"
            f" SELECT other.id, {audience} FROM audiences_audience AS its"
            " CROSS JOIN (SELECT id FROM audiences_install WHERE id <> %(first)s) AS other"
            " WHERE its.install_id = %(first)s AND NOT EXISTS (SELECT FROM audiences_audience AS same"
            " WHERE same.install_id = other.id AND same.segment_id = its.segment_id)",
            {"first": first.pk},
        )
        # Without statistics of these rows, PostgreSQL may compare each audience with all others, for minutes.
        cursor.execute("ANALYZE audiences_audience, audiences_lane")
        cursor.execute(
            f"INSERT INTO audiences_lane (audience_id, {lane}) SELECT theirs.id, {lane}"
            " FROM audiences_lane JOIN audiences_audience AS its ON its.id = audience_id AND its.install_id = %s"
            " JOIN (SELECT id, segment_id FROM audiences_audience) AS theirs ON theirs.segment_id = its.segment_id"
            " WHERE NOT EXISTS (SELECT FROM audiences_lane AS present WHERE present.audience_id = theirs.id)",
            [first.pk],
        )


def _columns(model: type[Model]) -> list[str]:
    return [field.column for field in model._meta.concrete_fields if field.column]


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
        odp_id=naming.odp_id(slug, prefix="lytics_"),
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


# --- The pages that list or count them ------------------------------------------------------------------------

OTHER_LISTS = ("parked", "receipt", "run", "delivery", "resend", "audit", "trouble", "token")
STATES = ("behind", "blocked", "hold", "paused")


def addresses() -> list[str]:
    """Every page that lists or counts installs or audiences, with each order and filter."""
    install, audience = Install.objects.earliest("pk"), Audience.objects.earliest("pk")
    installs = reverse("admin:audiences_install_changelist")
    audiences = reverse("admin:audiences_audience_changelist")
    orders = [
        f"{page}?o=-{place}"
        for page, shown in ((installs, InstallAdmin.list_display), (audiences, AudienceAdmin.list_display))
        for place in range(1, len(shown) + 1)
    ]
    return [
        reverse("admin:index"),
        lines.url_of_all(""),
        lines.url_of_all("", kind="paused"),
        f"{reverse('admin:index')}?install={install.public_id}",
        f"{reverse('admin:index')}?install={install.public_id}&hours=168",
        reverse("admin:audiences_live"),
        reverse("find_customer"),
        installs,
        f"{installs}?q=Shop",
        audiences,
        f"{audiences}?q=segment",
        f"{audiences}?install__id__exact={install.pk}",
        *(f"{audiences}?state={state}" for state in STATES),
        *(f"{audiences}?state={state}&install__id__exact={install.pk}" for state in STATES),
        *orders,
        *(reverse(f"admin:audiences_{name}_changelist") for name in OTHER_LISTS),
        reverse("admin:audiences_install_change", args=[install.pk]),
        reverse("admin:audiences_audience_change", args=[audience.pk]),
    ]


def searches() -> list[tuple[str, dict[str, str]]]:
    """The searches of the search box and of *Find a customer*, as POSTs."""
    found = [(reverse("search_everything"), {"text": text}) for text in ("Shop 0", "segment", "12", "nobody", "kim")]
    return [*found, *((reverse("find_customer"), {"identifier": who}) for who in ("nobody", "kim"))]
