"""Try the channels for alerts."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from audiences.operations import alert_messages


class Command(BaseCommand):
    help = "Send a test alert to each channel that the settings name, now. Exit code 1 when one doesn't accept it."

    def handle(self, *args: Any, **options: Any) -> None:
        # This command sends them, one after another. A worker sends those that are left if the command is stopped.
        queued = alert_messages.queue_test(delay=len(alert_messages.channels()) * alert_messages.CLAIM)
        if not queued:
            raise CommandError("No channel is set: ALERT_EMAILS, ALERT_SLACK_URL or ALERT_WEBHOOK_URL.")
        failed = 0
        for message in queued:
            alert_messages.send(message)
            failed += bool(message.problem)
            self.stdout.write(f"{message.get_channel_display()}: {message.problem or 'accepted'}")
        if failed:
            raise SystemExit(1)
