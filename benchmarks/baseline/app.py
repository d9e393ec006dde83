"""Its Celery application, and its web application: ``celery -A benchmarks.baseline.app``, ``gunicorn …:web``."""

import os

os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.baseline.settings"

from celery import Celery
from django.core.wsgi import get_wsgi_application

app = Celery("baseline")
app.config_from_object("django.conf:settings", namespace="CELERY")
web = get_wsgi_application()
app.autodiscover_tasks(["benchmarks.baseline"])
