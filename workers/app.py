"""The Celery application. Its messages are hints: nothing is lost when one is, and two are as good as one."""

import os

from celery import Celery
from celery.signals import setup_logging

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lytics_sync.settings")

app = Celery("lytics_sync")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["workers"])


@setup_logging.connect
def _use_django_logging(**kwargs: object) -> None:
    """Celery would replace the handlers that settings.LOGGING made; one format for every process instead."""
    import logging.config

    from django.conf import settings

    logging.config.dictConfig(settings.LOGGING)
