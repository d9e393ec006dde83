"""The URLs for requests that may come from Lytics. ``routing`` selects them instead of ``urls``.

Lytics never retries after a 404, so every path outside the webhook answers 401.
"""

from django.urls import re_path

from audiences.receiving.views import UnknownWebhookView, WebhookView, bad_request
from lytics_sync import database_away

webhook = re_path(r"^webhooks/lytics/(?P<public_id>[0-9a-zA-Z_-]{1,64})/?$", WebhookView.as_view(), name="webhook")
urlpatterns = [webhook, re_path("", UnknownWebhookView.as_view())]
handler400 = bad_request
handler500 = database_away.server_error
