"""Front page alerts about channels that don't accept the messages about troubles."""

from audiences.admin.pages import list_url
from audiences.front.alerts import Alert
from audiences.models import Trouble
from audiences.operations import alert_messages

KIND = "channel"


def alerts() -> list[Alert]:
    """The other channels, and this page, report it. It ends when the channel has accepted the messages that wait."""
    return [
        Alert(
            KIND,
            f"Alerts by {message.get_channel_display()} fail",
            f"{message.problem[:1].upper()}{message.problem[1:]}. Nobody is notified there.",
            message.created_at,
            list_url(Trouble),
            todo="Correct the settings of the channel, and restart the workers; or repair what receives its messages."
            " Then press Send a test. Messages about troubles that are still open are sent when it accepts them.",
            cause=message.channel,
        )
        for message in alert_messages.failing()
    ]
