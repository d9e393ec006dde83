from django.apps import AppConfig


class AudiencesConfig(AppConfig):
    name = "audiences"
    verbose_name = "Audience sync"

    def ready(self) -> None:
        from audiences import checks  # noqa: F401 — registers the system checks
