"""The WSGI application that gunicorn serves."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lytics_sync.settings")

from django.conf import settings

from audiences import sessions

sessions.bound(settings.DATABASE_WEB_SECONDS)
application = get_wsgi_application()
