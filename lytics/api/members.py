"""The members of an audience, page by page, by Lytics' scan."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lytics.api.client import Client, Digits
from lytics.api.outcomes import Answer, Outcome
from lytics.api.reading import Fields, count, text
from lytics.identifiers import as_whole_number, trimmed

# Documented: 10 by default, 100 at most. A million members need 10,000 requests.
LARGEST_PAGE = 100
# The outcomes of a request with a token after which the scan must begin again, unless the audience is gone.
_TOKEN_ENDED = {Outcome.REJECTED, Outcome.NOT_FOUND}


@dataclass(frozen=True)
class Member:
    """One member with the fields that were asked for, under Lytics' names."""

    fields: Fields = field(repr=False)

    def holds_list(self, name: str) -> bool:
        return isinstance(self.fields.get(name), list)

    def identifiers(self, name: str) -> tuple[str, ...]:
        """The identifiers in one field, each once, read as in webhook calls: trimmed, numbers by their digits."""
        value = self.fields.get(name)
        found = map(_identifier, value if isinstance(value, list) else [value])
        return tuple(dict.fromkeys(identifier for identifier in found if identifier))


@dataclass(frozen=True)
class MemberPage:
    """One page. ``token`` is the token of its request, ``next_token`` that of the next page, empty at the end.

    ``total`` is the size in the response (documented). Whether it is the current size or that at the beginning of the
    scan is unknown. ``is_expired`` means that the scan has to start again, without a token.
    """

    answer: Answer
    token: str
    members: tuple[Member, ...] = ()
    unreadable: int = 0
    total: int | None = None
    next_token: str = ""
    is_expired: bool = False

    @property
    def is_last(self) -> bool:
        """Whether this page ends the scan, with all members read. An empty ``_next`` ends it (documented)."""
        return self.answer.is_ok and not self.next_token


def scan(
    client: Client, segment_id: str, *, fields: Sequence[str], token: str = "", page_size: int = LARGEST_PAGE
) -> Iterator[MemberPage]:
    """Yield the pages of an audience, beginning with that of ``token``, or with the first.

    The last page ends it, and so does a page whose ``answer`` is not OK: resume with the ``token`` of that page, or
    start again if it ``is_expired``. A token must be recent (documented). Its lifetime and the response to an old token
    are unknown, so each rejection of a request with a token counts as expired. Whether the scan has members who enter
    or leave meanwhile is unknown; a member may be in it twice.
    """
    while True:
        page = _page(client, segment_id, fields=fields, token=token, page_size=page_size)
        yield page
        if not page.next_token:
            return
        token = page.next_token


def _page(client: Client, segment_id: str, *, fields: Sequence[str], token: str, page_size: int) -> MemberPage:
    query = {"limit": str(page_size)}
    query |= {"fields": ",".join(fields)} if fields else {}
    query |= {"start": token} if token else {}
    answer = client.get("api", "segment", segment_id, "scan", query=query)
    if not answer.is_ok:
        return MemberPage(answer, token, is_expired=bool(token) and answer.outcome in _TOKEN_ENDED)
    body = answer.json if isinstance(answer.json, dict) else {}
    data = [] if body.get("data") is None and ("data" in body or "total" in body) else body.get("data")
    if not isinstance(data, list):
        reason = f"{answer.status}: the response has no list of members"
        return MemberPage(replace(answer, outcome=Outcome.RETRY_LATER, reason=reason), token)
    next_token = text(body, "_next")
    if next_token and next_token == token:
        reason = f"{answer.status}: the scan does not advance, because the next page is this one"
        return MemberPage(replace(answer, outcome=Outcome.REJECTED, reason=reason), token, is_expired=True)
    members = tuple(Member(part) for part in data if isinstance(part, dict))
    # Without the body, which would double the memory of a caller that keeps pages.
    return MemberPage(
        replace(answer, json=None), token, members, len(data) - len(members), count(body, "total"), next_token
    )


def _identifier(value: Any) -> str:
    if isinstance(value, str):
        return trimmed(value)
    if isinstance(value, Digits):
        return as_whole_number(value.text)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""
