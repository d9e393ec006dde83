"""The WSGI application that gunicorn serves."""

import os

from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIHandler
from django.core.wsgi import get_wsgi_application

from audiences import sessions, start_checks

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lytics_sync.settings")


def _application() -> WSGIHandler:
    from django.conf import settings

    try:
        sessions.bound(settings.DATABASE_WEB_SECONDS)
        made = get_wsgi_application()
    except ImproperlyConfigured as error:
        start_checks.refuse(str(error))
    start_checks.check()
    return made


application = _application()
