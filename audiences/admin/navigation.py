"""The sidebar, in the order of an operator's day."""

from typing import Any

from django.http import HttpRequest

from audiences.admin import customer
from audiences.admin.addresses import address
from audiences.index_order import index_order
from audiences.models import Parked


def sidebar(request: HttpRequest) -> list[dict[str, Any]]:
    def item(title: str, icon: str, page: str, permission: str = "", **more: Any) -> dict[str, Any]:
        allowed = not permission or request.user.has_perm(permission)
        return {
            "title": title,
            "icon": icon,
            "link": address(page),
            "permission": lambda _: allowed,
            **more,
        }

    def table(title: str, icon: str, model: str, app: str = "audiences", **more: Any) -> dict[str, Any]:
        return item(title, icon, f"admin:{app}_{model}_changelist", f"{app}.view_{model}", **more)

    live = request.user.has_perms(["audiences.view_receipt", "audiences.view_delivery"])
    deliveries = address("admin:audiences_delivery_changelist")
    # Ordered like the index of open items, so that PostgreSQL reads one open item. For exists(), it might scan closed
    # items first.
    with index_order():
        waiting = Parked.objects.filter(closed_at=None).order_by("install_id", "reason").values_list("pk").first()
    return [
        {
            "items": [
                item("Now", "monitor_heart", "admin:index"),
                table("Troubles", "notifications", "trouble"),
                item("Find a customer", "person_search", "find_customer", customer.PERMISSION),
                table("Audiences", "groups", "audience"),
                table(
                    "Parked", "inventory_2", "parked", **({"badge": "!", "badge_variant": "danger"} if waiting else {})
                ),
            ]
        },
        {
            "title": "Sync history",
            "separator": True,
            "items": [
                *([item("Live", "stream", "admin:audiences_live")] if live else []),
                table("Calls", "call_received", "receipt"),
                table("Runs", "view_timeline", "run"),
                table(
                    "Deliveries",
                    "send",
                    "delivery",
                    # The page Live has a URL below the deliveries.
                    active=request.path.startswith(deliveries) and request.path != address("admin:audiences_live"),
                ),
                table("Resends", "replay", "resend"),
                table("Audits", "balance", "audit"),
            ],
        },
        {
            "title": "Connecting",
            "separator": True,
            "items": [table("Installs", "cable", "install"), table("Tokens", "key", "token")],
        },
        {
            "title": "People",
            "separator": True,
            "items": [
                table("Users", "person", "user", "auth"),
                table("Roles", "badge", "group", "auth"),
                table("Who did what", "history", "logentry", "admin"),
            ],
        },
    ]
