"""Authorizations: the credentials of a job, here the header of each webhook call."""

from dataclasses import dataclass, field
from typing import Any

from lytics.api.client import Client
from lytics.api.reading import Fields, Many, One, many, one, text

# Documented: the type of an authorization that adds headers and parameters.
HEADERS = "header_param_auth"


@dataclass(frozen=True)
class Authorization:
    """One authorization. The names ``label`` and ``type`` are inferred; whether Lytics shows the headers is unknown."""

    auth_id: str
    label: str
    kind: str
    fields: Fields = field(repr=False)


def authorizations(client: Client) -> Many[Authorization]:
    return many(client.get("v2", "auth"), _authorization, name="list of authorizations")


def create_authorization(client: Client, *, label: str, header: str) -> One[Authorization]:
    """Create an authorization whose jobs send ``Authorization: header``.

    Documented: the type, the field ``webhook_request_headers`` with a header in each line, and the label. Unknown: the
    body around them, so a flat object is sent. After a request without a response, read the list before creating one.
    """
    content: dict[str, Any] = {"label": label, "webhook_request_headers": f"Authorization: {header}"}
    answer = client.post("v2", "auth", HEADERS, content=content, hidden=[header, *header.split()])
    return one(answer, _authorization, name="authorization")


def _authorization(fields: Fields) -> Authorization | None:
    auth_id = text(fields, "id", "auth_id")
    if not auth_id:
        return None
    label = text(fields, "label", "name", "description")
    return Authorization(auth_id, label, text(fields, "type", "auth_type"), fields)
