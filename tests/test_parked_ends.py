"""A parked item that is too large for a page: both its ends are shown, masked, and never all of it is in memory."""

import json
import tracemalloc
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.exceptions import ImproperlyConfigured
from django.test import Client
from django.urls import reverse
from hypothesis import given
from hypothesis import strategies as some

from audiences import partial_decryption
from audiences.admin import parked as pages
from audiences.admin.fragments import masked_ends
from audiences.encryption import encrypt
from audiences.models import Install, Parked
from tests.people import someone

EMAIL = "anna.maria@example.com"


# Its length divides no block or part.
UNEVEN = bytes(at * 7 % 251 for at in range(251))


def read_from(stored: bytes) -> Any:
    return lambda start, length: stored[start : start + length]


@pytest.mark.parametrize(
    "size", [20_000, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 2_500_000, 2_500_007, 786_432 + 31, 786_432 * 2]
)
@pytest.mark.parametrize("pad", range(0, 17, 4))
def test_both_ends_equal_those_of_the_encrypted_value(size: int, pad: int) -> None:
    clear = (UNEVEN * (size // len(UNEVEN) + 1))[: size + pad]
    hidden = encrypt(clear)
    found = partial_decryption.decrypt_ends(read_from(hidden), len(hidden))
    assert found.first == clear[: partial_decryption.PART]
    assert found.size == len(clear)
    assert len(found.last) > partial_decryption.PART - 17
    assert clear.endswith(found.last)


def test_an_older_key_opens_it_and_an_unknown_one_does_not(settings: Any) -> None:
    clear, old = b"x" * 300_000, settings.FIELD_ENCRYPTION_KEYS
    hidden = encrypt(clear)
    settings.FIELD_ENCRYPTION_KEYS = [Fernet.generate_key().decode(), *old]
    assert partial_decryption.decrypt_ends(read_from(hidden), len(hidden)).size == len(clear)
    settings.FIELD_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    with pytest.raises(ImproperlyConfigured):
        partial_decryption.decrypt_ends(read_from(hidden), len(hidden))


@pytest.mark.parametrize("at", [0.0, 0.1, 0.5, 0.9, 0.9999])
def test_an_altered_value_is_not_shown(at: float) -> None:
    hidden = bytearray(encrypt(b"x" * 300_000))
    place = 12 + int((len(hidden) - 60) * at)
    hidden[place] = ord("A") if hidden[place] != ord("A") else ord("B")
    with pytest.raises(ImproperlyConfigured):
        partial_decryption.decrypt_ends(read_from(bytes(hidden)), len(hidden))


# Values with every character that has a meaning in JSON; each contains SECRET.
SECRET = "Zaphod"
values = some.text(alphabet='a1 ":,{}[]\\\n', max_size=6).map(lambda text: f"{text}{SECRET}{text}")
documents = some.recursive(
    values | some.integers() | some.booleans() | some.none(),
    lambda inner: (
        some.lists(inner, max_size=4)
        | some.dictionaries(some.sampled_from(["email", "slug", "odd name", "a.b-c"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(document=some.lists(documents, min_size=1), cut=some.floats(0, 1), indent=some.sampled_from([None, 1]))
def test_wherever_a_text_is_cut_no_value_is_shown(document: Any, cut: float, indent: int | None) -> None:
    text = json.dumps(document, indent=indent)
    at = int(len(text) * cut)
    shown = "".join(masked_ends("[" + text[1:at], text[at:]))
    assert SECRET not in shown
    assert not set(shown) & set("0123456789")


def test_names_and_layout_are_shown() -> None:
    first, last = masked_ends(
        '[{"data": {"email": "x", "n": 1.5, "is": true, "s": "ab', 'cd", "lytics": {"slug": null}}]'
    )
    assert first == '[{"data": {"email": "•••", "n": •••, "is": true, "s": "•••"'
    assert last == '"•••", "lytics": {"slug": null}}]'


def test_text_that_is_no_json_is_not_shown() -> None:
    assert masked_ends(f'"{SECRET}": {SECRET}', f'"{SECRET}": x') == ("This is not JSON.", "")


@pytest.fixture
def large(install: Install) -> Parked:
    """An item of 8 MB with a person at both ends and in its middle."""
    person = json.dumps({"data": {"email": EMAIL, "crm_id": "4711-kim"}})
    body = f"[{person}, {'1,' * 4_000_000} {person}]".encode()
    return Parked.objects.create(install=install, reason="not_json", raw=encrypt(body))


@pytest.mark.django_db
def test_a_large_item_shows_its_ends_masked_and_its_size(large: Parked) -> None:
    shown = someone("viewer").get(reverse("admin:audiences_parked_change", args=[large.pk])).content.decode()
    assert "8,000 kB: too much for a page" in shown
    assert shown.count("crm_id") == 2
    assert EMAIL not in shown
    assert "4711" not in shown


@pytest.mark.django_db
def test_a_large_item_shows_its_unmasked_ends_to_an_admin_who_reveals_it(large: Parked) -> None:
    person, page = someone("admin"), reverse("admin:audiences_parked_change", args=[large.pk])
    reveal = reverse("admin:audiences_parked_reveal", args=[large.pk])
    person.post(reveal, {"seen": person.get(reveal).context["hidden"]["seen"]})
    assert person.get(page).content.decode().count(EMAIL) == 2
    assert EMAIL not in person.get(page).content.decode()


def peak_of(person: Client, address: str) -> int:
    person.get(address)
    tracemalloc.start()
    try:
        assert person.get(address).status_code == 200
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.django_db
def test_no_page_uses_memory_in_proportion_to_a_large_item(large: Parked) -> None:
    assert Parked.objects.filter(pk=large.pk, raw__isnull=False).exists()
    person = someone("admin")
    for address in (
        reverse("admin:audiences_parked_change", args=[large.pk]),
        reverse("admin:audiences_parked_changelist"),
        reverse("admin:audiences_parked_discard", args=[large.pk]),
        reverse("admin:index"),
    ):
        assert peak_of(person, address) < 8_000_000, address  # the item as stored has 10.7 MB


@pytest.mark.django_db
def test_a_large_item_that_no_key_opens_says_so(large: Parked, settings: Any) -> None:
    settings.FIELD_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    shown = someone("viewer").get(reverse("admin:audiences_parked_change", args=[large.pk])).content.decode()
    assert "can&#x27;t be decrypted" in shown


@pytest.mark.django_db
@pytest.mark.parametrize("clear", [140_000, 149_000, 149_900, 150_000, 151_000])
def test_the_page_opens_on_both_sides_of_the_limit(install: Install, clear: int) -> None:
    item = Parked.objects.create(install=install, reason="not_json", raw=encrypt(b"[" + b"1" * clear + b"]"))
    shown = someone("viewer").get(reverse("admin:audiences_parked_change", args=[item.pk])).content.decode()
    assert ("too much for a page" in shown) == (len(item.raw or b"") > pages.SHOWN_BYTES)
