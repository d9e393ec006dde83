"""The Django project: wiring only. Importing the Celery app here makes it the one that wake-ups are sent through."""

from workers.app import app as celery_app

__all__ = ["celery_app"]
