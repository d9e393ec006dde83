"""Tokens: random, two at a time, compared through a digest, stored encrypted."""

import base64
import hashlib
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest
from cryptography.fernet import Fernet
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences.encryption import decrypt, encrypt, opened
from audiences.front import expiring_tokens, troubles
from audiences.front.alerts import EVERYWHERE, Extent
from audiences.models import Event, Install, Token, Trouble
from audiences.operations import installs
from audiences.receiving import tokens
from tests.messages import body, message
from tests.threads import PATIENCE, eventually, start, waiting_for_a_lock

pytestmark = pytest.mark.django_db


def opens(install: Install, secret: str) -> bool:
    found, token = tokens.authenticate(public_id=install.public_id, authorization=secret)
    assert found == install
    return token is not None


# --- Making them ---------------------------------------------------------------------------------------------


def test_a_token_is_256_random_bits_after_a_prefix_that_people_recognise(install: Install) -> None:
    first, second = install.tokens.get().secret, tokens.create(install).secret
    for secret in (first, second):
        assert secret.startswith("lysync_")
        assert len(base64.urlsafe_b64decode(secret.removeprefix("lysync_") + "=")) == 32
    assert first != second


def test_two_tokens_are_valid_side_by_side_and_a_third_is_rejected(install: Install) -> None:
    first, second = install.tokens.get(), tokens.create(install)
    assert opens(install, first.secret)
    assert opens(install, second.secret)
    with pytest.raises(tokens.NoFreeSlotError, match="revoke one"):
        tokens.create(install)


def test_rotation_is_make_the_new_one_then_revoke_the_old_one_for_ever(install: Install) -> None:
    current = install.tokens.get()
    for _ in range(4):
        following = tokens.create(install)
        assert opens(install, current.secret)
        tokens.revoke(current)
        assert not opens(install, current.secret)
        assert opens(install, following.secret)
        current = following


def test_a_token_may_be_ended_at_a_chosen_time(install: Install) -> None:
    token = install.tokens.get()
    tokens.revoke(token, at=now() + timedelta(hours=1))
    assert opens(install, token.secret)
    tokens.revoke(token, at=now() - timedelta(seconds=1))
    assert not opens(install, token.secret)


def test_an_expired_token_leaves_its_place(install: Install) -> None:
    old = install.tokens.get()
    second = tokens.create(install)
    assert tokens.live(install) == [second, old]
    tokens.revoke(old, at=now() - timedelta(seconds=1))
    assert tokens.live(install) == [second]
    assert opens(install, tokens.create(install).secret)
    assert not opens(install, old.secret)


def test_a_revoked_token_stays_revoked(install: Install) -> None:
    token = install.tokens.get()
    tokens.revoke(token)
    [revoked_at] = install.tokens.values_list("revoked_at", flat=True)
    tokens.revoke(token, at=now() + timedelta(hours=1))
    tokens.revoke(token)
    assert install.tokens.filter(revoked_at=revoked_at, expires_at=None).exists()
    assert not opens(install, token.secret)
    assert tokens.live(install) == []


@pytest.mark.django_db(transaction=True)
def test_two_operators_who_create_a_token_at_once_do_not_get_three(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one asks while the first one has chosen a slot and not committed: it waits, and then finds no slot."""
    digest, second = tokens.digest, []

    def asked_meanwhile(secret: str) -> str:
        monkeypatch.setattr(tokens, "digest", digest)
        second.extend(start(lambda: tokens.create(install)))
        eventually(waiting_for_a_lock)
        return digest(secret)

    monkeypatch.setattr(tokens, "digest", asked_meanwhile)
    tokens.create(install)
    assert isinstance(second[0].exception(PATIENCE), tokens.NoFreeSlotError)
    assert len(tokens.live(install)) == 2


# --- Checking them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["{}", "Bearer {}", "bearer {}", "BEARER   {}", "  {}\t", " Bearer\t{} "])
def test_the_header_is_read_as_people_type_it(install: Install, layout: str) -> None:
    assert opens(install, layout.format(install.tokens.get().secret))


@pytest.mark.parametrize(
    "layout", ["", "Bearer", "Basic {}", "x{}", "{}x", "Bearer {} {}", "Bearer {1} {0}", "Bearer x{}", "\udcff{}"]
)
def test_any_other_header_opens_nothing(install: Install, layout: str) -> None:
    assert not opens(install, layout.format(install.tokens.get().secret, "more"))


def test_the_digest_itself_opens_nothing(install: Install) -> None:
    assert not opens(install, install.tokens.get().digest)


def test_a_token_opens_its_own_install_only(install: Install) -> None:
    other = Install(name="Other", odp_api_key="k")
    theirs = installs.create(other)
    assert not opens(install, theirs.secret)
    assert opens(other, theirs.secret)
    assert tokens.authenticate(public_id="nobody", authorization=theirs.secret) == (None, None)


def test_an_unknown_install_costs_as_much_work_as_a_known_one(install: Install) -> None:
    costs = []
    for public_id in (install.public_id, "nobody"):
        with CaptureQueriesContext(connection) as queries:
            tokens.authenticate(public_id=public_id, authorization="x")
        costs.append(len(queries))
    assert costs == [1, 1]


# --- Where they lie ------------------------------------------------------------------------------------------


def stored(column: str, table: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {column} FROM {table}")
        row = cursor.fetchone()
    assert row is not None
    return str(row[0])


def test_a_secret_is_encrypted_in_the_database_and_readable_for_people(install: Install) -> None:
    token = install.tokens.get()
    kept = stored("secret", "audiences_token")
    assert token.secret not in kept
    assert token.secret.removeprefix("lysync_") not in kept
    assert decrypt(kept.encode()).decode() == token.secret
    assert stored("digest", "audiences_token") == hashlib.sha256(token.secret.encode()).hexdigest()


def test_an_odp_key_is_encrypted_in_the_database(install: Install) -> None:
    assert "odp-key" not in stored("odp_api_key", "audiences_install")
    assert Install.objects.get().odp_api_key == "odp-key"


def test_secrets_stay_readable_with_an_old_key_after_a_new_one_was_put_before_it(
    install: Install, settings: Settings
) -> None:
    secret, old = install.tokens.get().secret, list(settings.FIELD_ENCRYPTION_KEYS)
    settings.FIELD_ENCRYPTION_KEYS = [Fernet.generate_key().decode(), *old]
    assert install.tokens.get().secret == secret
    assert Install.objects.get().odp_api_key == "odp-key"


def test_values_written_after_a_rotation_need_only_the_new_key(install: Install, settings: Settings) -> None:
    new = Fernet.generate_key().decode()
    settings.FIELD_ENCRYPTION_KEYS = [new, *settings.FIELD_ENCRYPTION_KEYS]
    token, hidden = tokens.create(install), encrypt(b"item")
    settings.FIELD_ENCRYPTION_KEYS = [new]
    assert Token.objects.get(pk=token.pk).secret == token.secret
    assert decrypt(hidden) == b"item"


def test_without_its_key_a_secret_says_which_setting_is_wrong(install: Install, settings: Settings) -> None:
    settings.FIELD_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    secret = install.tokens.get().secret
    assert "FIELD_ENCRYPTION_KEYS" in secret
    with pytest.raises(ImproperlyConfigured, match="FIELD_ENCRYPTION_KEYS"):
        opened(secret)


def test_calls_are_accepted_even_when_the_encryption_key_is_lost(install: Install, settings: Settings) -> None:
    secret = install.tokens.get().secret
    settings.FIELD_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    assert opens(install, secret)


# --- Their last use ------------------------------------------------------------------------------------------


def test_the_last_use_is_written_down_once_and_not_with_every_call(install: Install) -> None:
    token, other = install.tokens.get(), tokens.create(install)
    with CaptureQueriesContext(connection) as queries:
        for _ in range(5):
            tokens.note_use(token, source="192.0.2.7")
    assert len(queries) == 1
    token.refresh_from_db()
    assert token.last_used_at is not None
    assert token.last_used_from == "192.0.2.7"
    assert not Token.objects.get(pk=other.pk).last_used_at, "it decides which of the two can be revoked"


def test_the_last_use_is_written_down_again_after_a_while(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    token = install.tokens.get()
    written = []
    for second in (1000.0, 1059.9, 1060.0, 1119.9):
        monkeypatch.setattr("audiences.receiving.tokens.time", SimpleNamespace(monotonic=lambda second=second: second))
        with CaptureQueriesContext(connection) as queries:
            tokens.note_use(token, source=None)
        written.append(len(queries))
    assert written == [1, 0, 1, 0]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("state", ["53100", "55P03", "57014", "XX000"])
def test_a_use_that_can_not_be_recorded_fails_no_stored_call(
    state: str, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, a lock timeout, a cancelled statement and an internal error, in the update that records the use."""
    monkeypatch.setattr(tokens, "_noted", {})
    token = install.tokens.get()
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$;"
            " CREATE TRIGGER refuse BEFORE UPDATE ON audiences_token FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    try:
        answer = Client().post(
            f"/webhooks/lytics/{install.public_id}",
            body(message()),
            content_type="application/json",
            headers={"Authorization": str(token.secret)},
        )
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION refuse CASCADE")
    assert answer.status_code == 200
    assert Event.objects.count() == 1


@pytest.mark.parametrize(
    ("minutes", "warns"),
    [
        ({"used": 5, "newer_used": None, "expires": 719}, True),
        ({"used": 300, "newer_used": None, "expires": 719}, True),
        ({"used": 5, "newer_used": 1, "expires": 30}, True),
        ({"used": 11, "newer_used": 1, "expires": 30}, False),
        ({"used": 11, "newer_used": 12, "expires": 30}, True),
        ({"used": None, "newer_used": None, "expires": 30}, False),
        ({"used": 5, "newer_used": None, "expires": 721}, False),
        ({"used": 5, "newer_used": None, "expires": -1}, False),
    ],
)
def test_a_token_that_lytics_uses_is_on_now_before_it_expires(
    install: Install, operator: Client, minutes: dict[str, int | None], warns: bool
) -> None:
    """Lytics repeats calls that get 401 for about two hours, and then drops them."""

    def ago(name: str) -> datetime | None:
        number = minutes[name]
        return None if number is None else now() - timedelta(minutes=number)

    (old,) = tokens.live(install)
    newer = tokens.create(install)
    Token.objects.filter(pk=newer.pk).update(last_used_at=ago("newer_used"))
    expires_at = now() + timedelta(minutes=minutes["expires"] or 0)
    Token.objects.filter(pk=old.pk).update(last_used_at=ago("used"), expires_at=expires_at)
    found = expiring_tokens.alerts(EVERYWHERE)
    assert [alert.what for alert in found] == [f"Lytics still uses a token that expires soon ({install})"] * warns
    assert all(alert.todo.startswith("Show the header of the newer token") for alert in found)
    page = operator.get(reverse("admin:index")).content.decode()
    assert ("Lytics still uses a token" in page) == warns
    Token.objects.filter(pk=newer.pk).update(revoked_at=now())
    was_used = minutes["used"] is not None and minutes["expires"] in range(720)
    assert len(expiring_tokens.alerts(EVERYWHERE)) == was_used, "a revoked token replaces no other one"
    Token.objects.filter(pk=old.pk).update(revoked_at=now())
    assert expiring_tokens.alerts(Extent(install_id=install.pk)) == []


def test_a_token_that_expires_without_a_newer_one_leads_to_a_new_one(install: Install) -> None:
    used = {"last_used_at": now(), "expires_at": now() + timedelta(hours=1)}
    Token.objects.update(**used)
    (alert,) = expiring_tokens.alerts(EVERYWHERE)
    assert alert.todo.startswith("Make a new token")
    Install.objects.update(enabled=False)
    assert expiring_tokens.alerts(EVERYWHERE) == []


def test_each_token_that_expires_is_a_trouble_of_its_own(install: Install) -> None:
    """Two jobs may send one each, and a new header in one of them ends nothing in the other."""
    tokens.create(install)
    Token.objects.update(last_used_at=now(), expires_at=now() + timedelta(hours=1))
    troubles.check()
    assert Trouble.objects.filter(kind=expiring_tokens.KIND, resolved_at=None).count() == 2
