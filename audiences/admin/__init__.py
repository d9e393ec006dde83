"""The operator's pages: one file for each page they live on."""

from django.contrib import admin

from audiences.admin import (
    audiences,
    audits,
    deliveries,
    installs,
    parked,
    people,
    receipts,
    resends,
    runs,
    tokens,
    troubles,
)

admin.site.index_template = "audiences/front.html"
admin.site.index_title = "Now"

__all__ = [
    "audiences",
    "audits",
    "deliveries",
    "installs",
    "parked",
    "people",
    "receipts",
    "resends",
    "runs",
    "tokens",
    "troubles",
]
