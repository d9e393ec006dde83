"""Malformed bodies and requests, derived from those of Lytics. The same seed gives the same requests."""

import gzip
import json
import zlib
from random import Random

from tests.messages import body, message, single, transition

# Larger bodies would be slow because of their size alone.
LARGE = 50_000
# What a request in the corpus has in place of the install's path and token, so that it can be sent to any.
PATH, TOKEN = b"{PATH}", b"{TOKEN}"

_CLOUD_EVENT = {"specversion": "1.0", "source": "/work/j", "time": "2026-03-02T09:15:04Z", "data": message()["data"]}
REAL = [
    single(message()),
    body(message(), message(transition("exit", segment="s2", slug="basket"), who="lee")),
    body(*(message(transition("change"), who=["c1", "c2", f"c{number}"]) for number in range(20))),
    single(_CLOUD_EVENT),
    single({"events": [message(), message(who=7)]}),
    single({"data": [message()]}),
]
_PIECES = [
    *(b"[", b"]", b"{", b"}", b'"', b",", b":", b"\\", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b"),
    *(b"null", b"NaN", b"-Infinity", b"1e999999", b"9" * 5000, b"-0", b"0x1"),
    *(b'"\\ud800"', b'"\\u0000"', b'"\\udc00\\ud800"'),
    *(b"[" * 3000, b'{"a":' * 3000, b'"_id": "twice",', b'"data": {},'),
    *(b'"segment_events": 5,', b"\xed\xa0\x80", b"\xc0\x80"),
    *(b"\xe2\x80\xa8", b"//", b"/* */", b"'", b"\t", b"\r\n", b"x" * 70_000),
]  # fmt: skip


def odd_body(dice: Random) -> bytes:
    raw = dice.choice(REAL)
    for _ in range(dice.choice((0, 1, 1, 2, 3, 8))):
        raw = dice.choice(_MUTATIONS)(raw, dice)
    for _ in range(dice.choice((0, 0, 0, 1, 2))):
        raw = dice.choice(_PACKINGS)(raw, dice)
    return raw


def _flip(raw: bytes, dice: Random) -> bytes:
    changed = bytearray(raw)
    for _ in range(dice.choice((1, 1, 4)) if raw else 0):
        changed[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _cut(raw: bytes, dice: Random) -> bytes:
    start, end = sorted((dice.randrange(len(raw) + 1), dice.randrange(len(raw) + 1)))
    return dice.choice((raw[:start], raw[start:], raw[start:end], raw[:start] + raw[end:]))


def _splice(raw: bytes, dice: Random) -> bytes:
    at, other = dice.randrange(len(raw) + 1), dice.choice(REAL)
    return raw[:at] + other[dice.randrange(len(other)) :] + raw[dice.choice((at, len(raw))) :]


def _insert(raw: bytes, dice: Random) -> bytes:
    at = dice.randrange(len(raw) + 1)
    return raw[:at] + dice.choice(_PIECES) + raw[at:]


def _replace(raw: bytes, dice: Random) -> bytes:
    """Replace one value of the message; the JSON stays well-formed."""
    values = [b'"kim"', b'"enter"', b'"gold_club"', b'"s1"', b'"user"', b'"2026-03-02T09:15:00Z"', b'"job-7"']
    others = [
        b"null",
        b"[]",
        b"{}",
        b"true",
        b"-1.5e-7",
        b"9" * 400,
        b'"\\ud83d"',
        b'"a\\u0000b"',
        b'[["x"], {}, "y"]',
        b'""',
    ]
    return raw.replace(dice.choice(values), dice.choice([*others, b'"%s"' % (b"y" * 300)]))  # fmt: skip


def _repeat(raw: bytes, dice: Random) -> bytes:
    return b"[" + b",".join([raw] * (dice.choice((2, 50)) if len(raw) < LARGE else 1)) + dice.choice((b"]", b",]", b""))


def _in_another_encoding(raw: bytes, dice: Random) -> bytes:
    text = raw.decode("utf-8", "replace")
    return text.encode(dice.choice(("utf-16", "utf-16-be", "utf-32", "latin-1", "utf-8-sig", "utf-7")), "replace")


_MUTATIONS = [_flip, _cut, _splice, _insert, _insert, _replace, _replace, _repeat, _in_another_encoding]


def _break(packed: bytes, dice: Random) -> bytes:
    return packed if dice.random() < 0.5 else dice.choice((_flip, _cut, _insert))(packed, dice)


_PACKINGS = [
    lambda raw, dice: _break(gzip.compress(raw, mtime=0), dice),
    lambda raw, dice: _break(zlib.compress(raw), dice),
    lambda raw, dice: gzip.compress(raw + bytes(dice.choice((10, 5_000_000))), mtime=0),
    lambda raw, dice: gzip.compress(raw[:9], mtime=0) + gzip.compress(raw[9:], mtime=0) + bytes(dice.choice((0, 3))),
]


def odd_request(dice: Random) -> bytes:
    """The bytes of one request. It is valid HTTP, because invalid HTTP never reaches a URL."""
    content = odd_body(dice)
    path = dice.choice(
        (*[PATH] * 9, PATH + b"/", PATH + b"?a=%ff&format=xml", b"/webhooks/%00", b"//webhooks/x", b"/webhooks")
    )
    token = dice.choice((*[TOKEN] * 9, b"Bearer " + TOKEN, b"wrong", b"", b"\xff\xfe", b"Basic eDp5"))
    method = dice.choice(
        (*[b"POST"] * 12, b"PUT", b"PATCH", b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE", b"PROPFIND")
    )
    lines = [method + b" " + path + b" HTTP/1.1", b"Authorization: " + token, b"Connection: close"]
    lines.append(b"Host: " + dice.choice((*[b"127.0.0.1"] * 9, b"example.com", b"127.0.0.1:x", b"[::1]")))
    for name, values in _HEADERS.items():
        if dice.random() < 0.2:
            lines.append(name + b": " + dice.choice(values))
    if dice.random() < 0.25:
        lines.append(b"Transfer-Encoding: chunked")
        content = _chunked(content, dice)
    else:
        wrong = dice.choice((*[0] * 12, 1, 5000, -1, 10_000_000))
        lines.append(b"Content-Length: %d" % max(0, len(content) + wrong))
    return b"\r\n".join([*lines, b"", b""]) + content


_HEADERS = {
    b"Content-Type": [b"text/plain", b"multipart/form-data; boundary=b", b"nonsense", b"x/json; charset=utf-9"],
    b"Content-Encoding": [b"gzip", b"deflate", b"br", b"gzip, gzip", b"identity", b"\xff"],
    b"Accept": [b"text/html", b"*/*;q=x", b","],
    b"X-Forwarded-For": [b"203.0.113.9", b"unknown", b",,", b"::1%%x", b"1.2.3.4.5", b"\xff", b"a," * 500],
    b"X-Forwarded-Proto": [b"https", b"x"],
    b"Cookie": [b"sessionid=x; csrftoken=\xff", b";;="],
    b"X-HTTP-Method-Override": [b"DELETE"],
    b"Range": [b"bytes=0-1"],
    b"If-None-Match": [b"*"],
}  # fmt: skip


def _chunked(content: bytes, dice: Random) -> bytes:
    size = dice.choice((1, 100, 7001)) if len(content) < 5000 else 70_001
    chunks = [content[start : start + size] for start in range(0, len(content), size)]
    whole = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    return whole if dice.random() < 0.8 else dice.choice((_flip, _cut))(whole, dice)


def elements(raw: bytes) -> int | None:
    """How many messages a body holds, by another reader than ours; None when that one can't read it as an array."""
    try:
        read = json.loads(raw.decode())
    except (ValueError, RecursionError):
        return None
    return len(read) if isinstance(read, list) else None
