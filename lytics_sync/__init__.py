"""The Django project: wiring only. Importing the Celery app here makes it the current app, which sends wake-ups."""

from workers.app import app as celery_app

__all__ = ["celery_app"]
