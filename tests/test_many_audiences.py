"""No page needs more queries with 50 installs of 500 audiences than with 5 installs of 5."""

from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from audiences.admin.audiences import AudienceAdmin
from audiences.admin.installs import InstallAdmin
from audiences.models import Audience, Install
from tests import many

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


def queries(client: Client, address: str) -> int:
    with CaptureQueriesContext(connection) as captured:
        answer = client.get(address)
    assert answer.status_code == 200, address
    return len(captured)


def test_no_page_needs_more_queries_for_more_installs_and_audiences(admin_client: Client) -> None:
    many.fill(5, 5)
    pages = addresses()
    for address in pages:
        queries(admin_client, address)
    few = {address: queries(admin_client, address) for address in pages}
    many.fill(50, 500)
    found = {address: queries(admin_client, address) for address in pages}
    assert {address: number for address, number in found.items() if number > few[address]} == {}
