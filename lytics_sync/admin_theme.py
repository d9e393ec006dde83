"""The theme of the admin: names, symbols, files and the sidebar."""

from django.templatetags.static import static

UNFOLD = {
    "SITE_TITLE": "Lytics Sync",
    "SITE_HEADER": "Lytics Sync",
    "SITE_SUBHEADER": "Lytics audiences in ODP",
    "SITE_SYMBOL": "sync_alt",
    "SITE_URL": None,
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("audiences/favicon.svg")}
    ],
    "SHOW_VIEW_ON_SITE": False,
    "STYLES": [lambda request: static("audiences/admin.css")],
    "SCRIPTS": [lambda request: static("audiences/admin.js"), lambda request: static("audiences/access.js")],
    "DASHBOARD_CALLBACK": "audiences.front.page.dashboard",
    "SIDEBAR": {"navigation": "audiences.admin.navigation.sidebar"},
}
