"""The WSGI application of the baseline: ``gunicorn benchmarks.baseline.app:web``."""

import os

os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.baseline.settings"

from django.core.wsgi import get_wsgi_application

web = get_wsgi_application()
