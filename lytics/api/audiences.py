"""Audiences, which Lytics' API calls segments."""

from dataclasses import dataclass, field
from datetime import datetime

from lytics.api.client import Client
from lytics.api.reading import Fields, Many, One, count, flag, many, moment, one, text


@dataclass(frozen=True)
class Audience:
    """One audience. Documented fields: id, name, slug_name, size, table, kind, invalid, is_public, segment_ql, updated.

    ``size`` is None when Lytics sends no size. The age of a size is unknown. ``definition`` is the FilterQL of the
    audience; that ``updated_at`` moves when it changes is inferred.
    """

    segment_id: str
    slug: str
    name: str
    size: int | None
    table: str
    kind: str
    is_invalid: bool
    invalid_reason: str
    is_public: bool
    definition: str
    updated_at: datetime | None
    fields: Fields = field(repr=False)


def audiences(client: Client) -> Many[Audience]:
    """All audiences of people, with sizes. Lytics documents no paging here, and at most 500 audiences per account."""
    answer = client.get("v2", "segment", query={"table": "user", "kind": "segment", "sizes": "true"})
    return many(answer, _audience, name="list of audiences")


def audience(client: Client, id_or_slug: str) -> One[Audience]:
    """One audience with its size, by id or slug (documented)."""
    return one(client.get("v2", "segment", id_or_slug, query={"sizes": "true"}), _audience, name="audience")


def _audience(fields: Fields) -> Audience | None:
    segment_id = text(fields, "id")
    if not segment_id:
        return None
    return Audience(
        segment_id=segment_id,
        slug=text(fields, "slug_name", "slug"),
        name=text(fields, "name"),
        size=count(fields, "size"),
        table=text(fields, "table"),
        kind=text(fields, "kind"),
        is_invalid=flag(fields, "invalid"),
        invalid_reason=text(fields, "invalid_reason"),
        is_public=flag(fields, "is_public"),
        definition=text(fields, "segment_ql"),
        updated_at=moment(fields, "updated"),
        fields=fields,
    )
