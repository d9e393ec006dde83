"""gunicorn's request, but for blanks and unencoded bytes in the query of a webhook's URL: such a call is taken.

Proxies and job forms let them through, and the query means nothing here, so encoding them changes nothing. A blank
anywhere else could hide another request line, and stays refused.
"""

import re

from gunicorn.http.message import Request

_ODD_QUERY = re.compile(rb"((?:POST|PUT|PATCH) /webhooks/[\x21-\x7e]*)\?([\x20-\x7e\x80-\xff]*)( HTTP/1\.[01])")
_UNENCODED = re.compile(rb"[^\x21-\x7e]")


class LenientRequest(Request):  # type: ignore[misc]  # gunicorn has no types
    def parse_request_line(self, line_bytes: bytes) -> None:
        super().parse_request_line(with_encoded_query(line_bytes))


def with_encoded_query(line: bytes) -> bytes:
    """The request line of a call with its query encoded; any other one as it is."""
    match = _ODD_QUERY.fullmatch(line)
    if match is None or b"HTTP/" in match[2]:
        return line
    query = _UNENCODED.sub(lambda byte: b"%%%02X" % byte[0][0], match[2])
    return match[1] + b"?" + query + match[3]
