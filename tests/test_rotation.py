"""Secrets at rest change their key while everything runs, and the old key can be thrown away afterwards."""

import json
import os
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db.models import BinaryField
from django.test import Client
from django.utils.timezone import now

from audiences import encryption, lytics_account
from audiences.encryption import EncryptedTextField, decrypt, opened
from audiences.management.commands import rotate_secrets
from audiences.models import Forgotten, GuidedChange, Install, LyticsAccount, Parked, Token
from audiences.operations import forgetting, installs, rotation
from audiences.receiving import ingest
from tests.delivering import make_install

pytestmark = pytest.mark.django_db

OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()


@pytest.fixture
def shop(settings: Any) -> Install:
    """An install with a token and a parked item encrypted with the old key; now the new key is first."""
    settings.FIELD_ENCRYPTION_KEYS = [OLD]
    made = Install(name="Shop", odp_api_key="the-odp-key")
    installs.create(made)
    lytics_account.set_token(made, "lytics-api-token")
    forgetting.ask(made, "kim", tell_odp=False, by="dpo")
    GuidedChange.objects.create(install=made, kind="account", by="kim", reason="a test", other_api_key="another.key")
    ingest.receive(made, b"not json at all")
    # Rows without a secret: a change of another kind, and a change that ODP rejected.
    GuidedChange.objects.create(install=made, kind="mechanism", by="kim", reason="a test", ended_at=now())
    Parked.objects.create(install=made, reason="refused_by_odp")
    settings.FIELD_ENCRYPTION_KEYS = [NEW, OLD]
    return made


def test_afterwards_the_old_key_is_needed_no_more(shop: Install, settings: Any) -> None:
    secret = Token.objects.get().secret
    assert {table: result.written for table, result in rotation.rotate().items()} == {
        "audiences_install": 1,
        "audiences_forgotten": 1,
        "audiences_guidedchange": 1,
        "audiences_lyticsaccount": 1,
        "audiences_token": 1,
        "audiences_parked": 1,
    }
    settings.FIELD_ENCRYPTION_KEYS = [NEW]
    assert LyticsAccount.objects.get().api_token == "lytics-api-token"
    assert Forgotten.objects.get().identifier == "kim"
    assert GuidedChange.objects.get(kind="account").other_api_key == "another.key"
    assert Install.objects.get().odp_api_key == "the-odp-key"
    assert Token.objects.get().secret == secret
    assert decrypt(bytes(Parked.objects.get(raw__isnull=False).raw or b"")) == b"not json at all"


def test_before_it_the_old_key_is_needed(shop: Install, settings: Any) -> None:
    settings.FIELD_ENCRYPTION_KEYS = [NEW]
    with pytest.raises(ImproperlyConfigured):
        opened(Install.objects.get().odp_api_key)


def test_calls_are_accepted_before_and_after(shop: Install, settings: Any) -> None:
    header = installs.authorization(Token.objects.get())
    for keys in ([NEW, OLD], [NEW]):
        settings.FIELD_ENCRYPTION_KEYS = keys
        answer = Client().post(
            f"/webhooks/lytics/{shop.public_id}",
            "[]",
            content_type="application/json",
            headers={"Authorization": header},
        )
        assert answer.status_code == 200
        rotation.rotate()


def test_a_second_time_there_is_nothing_to_do(shop: Install) -> None:
    rotation.rotate()
    assert not any(any(result) for result in rotation.rotate().values())


def test_a_concurrent_change_wins(shop: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(hidden: bytes) -> bytes:
        Install.objects.filter(odp_api_key__isnull=False).update(odp_api_key="another-key")
        return decrypt(hidden)

    monkeypatch.setattr(rotation, "decrypt", changed)
    assert rotation.rotate()["audiences_install"].written == 0
    assert Install.objects.get().odp_api_key == "another-key"


def test_it_goes_through_more_rows_than_it_holds_at_once(
    shop: Install, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.FIELD_ENCRYPTION_KEYS = [OLD]
    for number in range(7):
        make_install(name=f"Shop {number}")
    settings.FIELD_ENCRYPTION_KEYS = [NEW, OLD]
    monkeypatch.setattr(rotation, "AT_ONCE", 3)
    assert rotation.rotate()["audiences_install"].written == 8


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_secret_that_no_key_opens_is_named_and_keeps_no_other_from_being_rotated(
    shop: Install, settings: Any, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    settings.FIELD_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    ingest.receive(shop, b"not json either")
    settings.FIELD_ENCRYPTION_KEYS = [NEW, OLD]
    lost = Parked.objects.latest("pk")
    ingest.receive(shop, b"nor this")
    before = bytes(Parked.objects.get(pk=lost.pk).raw or b"")
    settings.FIELD_ENCRYPTION_KEYS = [Fernet.generate_key().decode(), NEW, OLD]
    with pytest.raises(SystemExit) as ended:
        call_command("rotate_secrets", *words)
    assert ended.value.code == 1
    said = capsys.readouterr().out
    if words:
        assert json.loads(said)["unreadable"] == {"audiences_parked": [lost.pk]}
        assert json.loads(said)["audiences_parked"] == 2
    else:
        assert "audiences_parked: 2 encrypted anew" in said
        assert f"audiences_parked: 1 that no key in FIELD_ENCRYPTION_KEYS decrypts: id {lost.pk}\n" in said
        assert "Everything" not in said
    assert bytes(Parked.objects.get(pk=lost.pk).raw or b"") == before


@pytest.mark.parametrize(("many", "ends"), [(20, ", 20\n"), (21, ", 20 and so on\n")])
def test_a_list_that_is_cut_off_says_so(
    many: int, ends: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"audiences_parked": rotation.Rotated(0, list(range(1, many + 1)))}
    monkeypatch.setattr(rotate_secrets, "rotate", lambda: found)
    with pytest.raises(SystemExit):
        call_command("rotate_secrets")
    assert capsys.readouterr().out.endswith(ends)


def test_the_command_reports_its_result(shop: Install, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("rotate_secrets", "--json")
    assert json.loads(capsys.readouterr().out)["audiences_token"] == 1
    call_command("rotate_secrets")
    assert "audiences_token: 0 encrypted anew" in capsys.readouterr().out


@pytest.mark.parametrize("size", [0, 15, 16, 17, 99, 100, 101, 199, 200, 201, 1000])
def test_encryption_in_pieces_equals_that_of_fernet(size: int, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clear = os.urandom(size)
    monkeypatch.setattr(encryption, "PIECE", 100)
    settings.FIELD_ENCRYPTION_KEYS = [NEW, OLD]
    token = encryption.encrypt(clear)
    assert Fernet(NEW).decrypt(token) == clear
    assert len(token) == len(Fernet(NEW).encrypt(clear))


def test_no_encrypted_column_is_forgotten() -> None:
    """Bytes that are stored and aren't encrypted are named here: a request is packed, and holds what events hold."""
    packed = {("audiences_delivery", "request")}
    found = {
        (model._meta.db_table, field.column)
        for model in apps.get_app_config("audiences").get_models()
        for field in model._meta.concrete_fields
        if isinstance(field, EncryptedTextField | BinaryField)
    }
    assert found - packed == set(rotation.COLUMNS)
