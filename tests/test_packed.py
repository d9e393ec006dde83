"""Bodies that can't be unpacked are named as compressed, by their Content-Encoding or their first bytes."""

import gzip
import zlib
from collections.abc import Callable

import pytest
from django.test import Client

from audiences.models import Event, Install, Parked
from tests.messages import body, message

pytestmark = pytest.mark.django_db

BROTLI = bytes.fromhex("0b0a805b7b2264617461223a7b7d7d5d0a03")
ZSTD = bytes.fromhex("28b52ffd") + b"\x00" * 9


@pytest.mark.parametrize(
    ("encoding", "content", "reason"),
    [
        ("br", BROTLI, "packed_body"),
        (" BR ", b"\xff\x00\x01", "packed_body"),
        ("zstd", b"\x00\x01\x02", "packed_body"),
        ("", ZSTD, "packed_body"),
        ("deflate", b"\xff\x00\x01", "packed_body"),
        ("gzip, br", b"\xff\x00\x01", "packed_body"),
        # brotli of a usual batch begins with this byte, which is "[" in ASCII
        ("br", b"[\x80\x1f" + bytes(range(128, 256)) * 9, "packed_body"),
        ("br", b"{\xff\xfe" + bytes(range(128, 256)) * 9, "packed_body"),
        ("br", b'[{"data":{"_id":"ann', "cut_off_body"),
        ("gzip", gzip.compress(b"hello", mtime=0), "not_json"),
        ("deflate", zlib.compress(b"<html>"), "not_json"),
        ("utf-8", b"hello", "not_json"),
        ("aws-chunked", b"hello", "not_json"),
        ("identity", b"\xff\x00\x01", "not_json"),
        ("", b"no JSON", "not_json"),
    ],
)
def test_a_body_that_is_still_compressed_is_parked_as_compressed(
    install: Install, encoding: str, content: bytes, reason: str
) -> None:
    headers = {"Authorization": install.tokens.get().secret, **({"Content-Encoding": encoding} if encoding else {})}
    where = f"/webhooks/lytics/{install.public_id}"
    answer = Client().post(where, content, content_type="application/json", headers=headers)
    assert answer.status_code == 200
    assert Parked.objects.get().reason == reason


def without_header(content: bytes) -> bytes:
    """deflate as some libraries send it: RFC 1951 alone, without the header of zlib that HTTP asks for."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


def test_deflate_without_its_header_is_read_in_each_encoding_of_text(install: Install) -> None:
    where = f"/webhooks/lytics/{install.public_id}"
    headers = {"Authorization": install.tokens.get().secret, "Content-Encoding": "deflate"}
    for number, encoding in enumerate(("utf-8-sig", "utf-16", "utf-8"), start=1):
        content = without_header(body(message()).decode().encode(encoding))
        assert Client().post(where, content, content_type="application/json", headers=headers).status_code == 200
        assert Event.objects.count() == number, encoding


@pytest.mark.parametrize("pack", [zlib.compress, without_header])
@pytest.mark.parametrize("encoding", ["deflate", " Deflate "])
def test_deflate_is_unpacked_with_and_without_its_header(
    install: Install, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    headers = {"Authorization": install.tokens.get().secret, "Content-Encoding": encoding}
    where = f"/webhooks/lytics/{install.public_id}"
    answer = Client().post(where, pack(body(message())), content_type="application/json", headers=headers)
    assert answer.status_code == 200
    assert list(Parked.objects.values_list("reason", flat=True)) == []
    assert Event.objects.count() == 1


@pytest.mark.parametrize("pack", [zlib.compress, without_header])
@pytest.mark.parametrize("encoding", ["deflate", "br"])
def test_deflate_that_is_damaged_or_called_otherwise_is_parked_as_compressed(
    install: Install, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    headers = {"Authorization": install.tokens.get().secret, "Content-Encoding": encoding}
    where = f"/webhooks/lytics/{install.public_id}"
    content = pack(body(message()))[:-9]
    assert Client().post(where, content, content_type="application/json", headers=headers).status_code == 200
    assert Parked.objects.get().reason == "packed_body"


def test_json_that_claims_to_be_compressed_is_read(install: Install) -> None:
    headers = {"Authorization": install.tokens.get().secret, "Content-Encoding": "br"}
    where = f"/webhooks/lytics/{install.public_id}"
    answer = Client().post(where, b'[{"data":{}}]', content_type="application/json", headers=headers)
    assert answer.status_code == 200
    assert Parked.objects.get().reason not in ("packed_body", "not_json")
