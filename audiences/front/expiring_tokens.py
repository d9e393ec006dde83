"""Front page alerts for tokens that Lytics still uses shortly before they expire."""

from datetime import timedelta

from django.db.models import Exists, OuterRef, Q
from django.utils.timezone import now

from audiences.admin.pages import list_url, url_of
from audiences.front.alerts import Alert, Extent, and_more, buttons, listed_rows
from audiences.models import Token
from audiences.receiving import tokens

KIND = "token"
SOON = timedelta(hours=12)
# A token is in use if a call came with it in this time, or if no call came with a newer one since.
RECENTLY = timedelta(minutes=10)


def alerts(extent: Extent) -> list[Alert]:
    at = now()
    newer = Token.objects.filter(install=OuterRef("install"), pk__gt=OuterRef("pk"), revoked_at=None)
    is_replaced = Exists(newer.filter(last_used_at__gte=OuterRef("last_used_at")))
    used = Token.objects.filter(Q(last_used_at__gt=at - RECENTLY) | ~is_replaced, last_used_at__isnull=False)
    expiring = used.filter(revoked_at=None, expires_at__gt=at, expires_at__lt=at + SOON, install__enabled=True)
    found, total = listed_rows(expiring.select_related("install").order_by("expires_at"), extent, by="install")
    more = and_more(KIND, total, "tokens expire soon and are in use", list_url(Token), extent, tone="held")
    return [*map(_alert, found), *more]


def _alert(token: Token) -> Alert:
    install = token.install
    newest = next(iter(tokens.live(install)), token)
    if newest.pk == token.pk:
        todo, remedy = "Make a new token, and copy its header into the Lytics job.", buttons(install, "new-token")
    else:
        todo = "Show the header of the newer token, and copy it into each Lytics job that sends the old one."
        remedy = buttons(newest, "reveal", back=url_of(install))
    return Alert(
        KIND,
        f"Lytics still uses a token that expires soon ({install})",
        f"The last call with it came at {token.last_used_at:%Y-%m-%d %H:%M} UTC, and it expires at"
        f" {token.expires_at:%Y-%m-%d %H:%M} UTC. Calls with an expired token get 401. Lytics sends them again for"
        " about two hours; after that, their events are missing.",
        None,
        url_of(install),
        tone="held",
        todo=todo,
        offers=(remedy,),
        install=install.pk,
        cause=str(token.pk),
    )
