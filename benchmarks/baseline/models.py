from typing import ClassVar

from django.db import models


class Event(models.Model):
    audience = models.CharField(max_length=100)
    identifier = models.CharField(max_length=100)
    is_enter = models.BooleanField()
    occurred_at = models.DateTimeField()
    received_at = models.DateTimeField(auto_now_add=True)

    objects: ClassVar[models.Manager["Event"]] = models.Manager()

    class Meta:
        app_label = "baseline"
        indexes = [models.Index(fields=["identifier"])]

    def __str__(self) -> str:
        return f"{self.identifier} in {self.audience}"
