"""One person and their audiences in Lytics."""

from dataclasses import dataclass, field, replace

from lytics.api.client import Client
from lytics.api.outcomes import Answer, Outcome
from lytics.api.reading import Fields, One, one, texts

# Documented: the audiences of a person who doesn't exist.
_PLACEHOLDERS = {"not_found", "all"}


@dataclass(frozen=True)
class Person:
    """A profile. ``segments`` are slugs of audiences (documented by samples).

    Whether ``all_segments`` holds ids or slugs is unknown, and whether ``segments`` names audiences without API access.
    """

    segments: frozenset[str]
    all_segments: frozenset[str]
    fields: Fields = field(repr=False)

    def is_in(self, *, segment_id: str, slug: str) -> bool:
        """Whether the person is in an audience, under its id or its slug."""
        return bool({segment_id, slug} & (self.segments | self.all_segments))


def person(client: Client, field_name: str, value: str) -> One[Person]:
    """The person with this identifier. NOT_FOUND when Lytics answers 200 with the message "Not Found"."""
    query = {"segments": "true", "allsegments": "true"}
    answer = client.get("api", "entity", "user", field_name, value, query=query, hidden=[value])
    found = one(answer, _person, name="profile")
    if found.item is not None and "not_found" in found.item.segments and found.item.segments <= _PLACEHOLDERS:
        return One(_not_found(answer))
    return found


def _not_found(answer: Answer) -> Answer:
    return replace(answer, outcome=Outcome.NOT_FOUND, reason=f"{answer.status}: Not Found")


def _person(fields: Fields) -> Person:
    every = texts(fields, "segments_all") or texts(fields, "all_segments")
    return Person(frozenset(texts(fields, "segments")), frozenset(every), fields)
