"""The expected memberships. This module shares no code with the stream's writer or its receiver."""

from collections import defaultdict
from datetime import datetime
from typing import Any

Message = dict[str, Any]


class Memberships:
    """For each audience and identifier the newest transition wins; at the same instant an exit wins."""

    def __init__(self, identifier_field: str) -> None:
        self.identifier_field = identifier_field
        # The rank of the newest transition: twice its nanoseconds, plus one for an exit. The higher rank wins.
        self._newest: defaultdict[str, dict[str, int]] = defaultdict(dict)

    def see(self, message: Message) -> None:
        data = message["data"]
        value = data[self.identifier_field]
        identifiers = [str(one) for one in (value if isinstance(value, list) else [value])]
        for transition in data["segment_events"]:
            kind = transition["event"]
            # A `change` has no time of its own. It says that the customer was a member at the time of the message.
            when = transition[kind] if kind != "change" else made_at_of(message)
            rank = 2 * nanoseconds(when) + (kind == "exit")
            newest = self._newest[transition["id"]]
            for identifier in identifiers:
                newest[identifier] = max(rank, newest.get(identifier, 0))

    def members(self, segment_id: str) -> list[str]:
        return sorted(who for who, rank in self._newest[segment_id].items() if rank % 2 == 0)

    def others(self, segment_id: str) -> list[str]:
        """The customers that were named for this audience and are not members at the end."""
        return sorted(who for who, rank in self._newest[segment_id].items() if rank % 2 == 1)

    def size(self, segment_id: str) -> int:
        return sum(rank % 2 == 0 for rank in self._newest[segment_id].values())


def made_at_of(message: Message) -> str:
    made_at: str = message["meta"]["timestamp"] if "meta" in message else message["time"]
    return made_at


def nanoseconds(text: str) -> int:
    """Nanoseconds since 1970. The fraction is parsed separately, because datetime only keeps microseconds."""
    text = text.replace("Z", "+00:00")
    whole, zone, fraction = text[:19], text[-6:], text[20:-6]
    return int(datetime.fromisoformat(whole + zone).timestamp()) * 1_000_000_000 + int(fraction.ljust(9, "0"))
