"""The yardstick for what a call costs: an empty DRF view on the same web server, without middleware and database.

It reads the body and answers 200. ``gunicorn benchmarks.empty_view:application`` runs it.
"""

import os

from django.core.wsgi import get_wsgi_application
from django.urls import path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lytics_sync.settings")
application = get_wsgi_application()

from django.conf import settings  # noqa: E402 — after Django is set up
from rest_framework.request import Request  # noqa: E402
from rest_framework.response import Response  # noqa: E402
from rest_framework.views import APIView  # noqa: E402


class EmptyView(APIView):
    def post(self, request: Request) -> Response:
        return Response({"received": len(request._request.body)})


urlpatterns = [path("", EmptyView.as_view())]
settings.ROOT_URLCONF = __name__
settings.MIDDLEWARE = []
# get_wsgi_application has loaded the middleware of the settings.
application.load_middleware()
