"""Changes to an install that would lose members silently are locked or need a confirmation of the consequence."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now

from audiences.delivery import backoff
from audiences.insight import trials
from audiences.models import Audience, GuidedChange, Install, Receipt, Token
from audiences.operations import guards, installs
from audiences.receiving import ingest, tokens
from odp.definitions import field_is_true, over
from odp.outcomes import Answer, Outcome
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import UNLIMITED, drain_all, make_audience, make_install
from tests.messages import body, message

pytestmark = pytest.mark.django_db(transaction=True)

FIELD = {"name": "x", "display_name": "x", "type": "boolean"}


@pytest.fixture
def shop(odp: ThreadedSandbox) -> Install:
    """An install with an audience in ODP."""
    made = Install(name="Shop", odp_host=odp.url, odp_api_key=odp.private_key, requests_per_second=0)
    installs.create(made)
    ingest.receive(made, body(message()))
    drain_all(made)
    return Install.objects.get()


def opened(client: Client, install: Install) -> dict[str, Any]:
    """The form as a browser would send it back unchanged."""
    form = client.get(reverse("admin:audiences_install_change", args=[install.pk])).context["adminform"].form
    values = {name: form.initial.get(name, "") for name in form.fields}
    return {name: value for name, value in values.items() if value is not None and value is not False}


def save(client: Client, install: Install, form: dict[str, Any], **changes: Any) -> str:
    address = reverse("admin:audiences_install_change", args=[install.pk])
    return client.post(address, {**form, **changes}, follow=True).content.decode()


def test_a_plain_change_is_one_step(operator: Client, shop: Install) -> None:
    save(operator, shop, opened(operator, shop), name="Shop 2", batch_size=100)
    again = Install.objects.get()
    assert (again.name, again.batch_size) == ("Shop 2", 100)


@pytest.mark.parametrize("mechanism", ["list", "passthrough"])
def test_the_mechanism_of_an_install_with_audiences_is_locked_with_the_reason(
    operator: Client, shop: Install, mechanism: str
) -> None:
    said = save(operator, shop, opened(operator, shop), mechanism=mechanism, understood="on")
    assert "1 audience of this install is defined over the data of the present mechanism" in said
    assert Install.objects.get().mechanism == "attribute"


def test_another_host_or_region_of_an_install_with_audiences_is_locked(operator: Client, shop: Install) -> None:
    for change in ({"odp_host": "http://127.0.0.1:9"}, {"odp_host": "", "region": "eu"}):
        said = save(operator, shop, opened(operator, shop), **change)
        assert "Another account has none of them" in said
    assert Install.objects.get().odp_host == shop.odp_host


def test_the_key_of_another_account_is_rejected(operator: Client, shop: Install, odp: ThreadedSandbox) -> None:
    odp.control("/sandbox/accounts", {"private_key": "another.account", **UNLIMITED})
    said = save(operator, shop, opened(operator, shop), odp_api_key="another.account")
    assert "This key belongs to another ODP account: lytics_gold_club is not there." in said
    assert Install.objects.get().odp_api_key == shop.odp_api_key


def test_a_key_that_can_not_be_checked_is_rejected(operator: Client, shop: Install) -> None:
    said = save(operator, shop, opened(operator, shop), odp_api_key="unknown.key")
    assert "could not be checked" in said
    assert Install.objects.get().odp_api_key == shop.odp_api_key


def test_a_new_key_of_the_same_account_is_one_step(operator: Client, shop: Install) -> None:
    public = shop.odp_api_key.partition(".")[0]
    save(operator, shop, opened(operator, shop), odp_api_key=f"{public}.rotated")
    assert Install.objects.get().odp_api_key == f"{public}.rotated"


def test_without_an_audience_in_odp_everything_may_change(operator: Client, odp: ThreadedSandbox) -> None:
    made = Install(name="Shop", odp_host=odp.url, odp_api_key=odp.private_key)
    installs.create(made)
    make_audience(made, provisioned=False)
    save(operator, made, opened(operator, made), mechanism="list", odp_host="http://127.0.0.1:9", odp_api_key="x.y")
    again = Install.objects.get()
    assert (again.mechanism, again.odp_host, again.odp_api_key) == ("list", "http://127.0.0.1:9", "x.y")


def test_another_identifier_field_asks_first_with_its_number(operator: Client, shop: Install) -> None:
    said = save(operator, shop, opened(operator, shop), identifier_field="user_id")
    assert "1 events were read with _id in the last hour" in said
    assert "At present it can&#x27;t: The members in ODP are known by _id" in said
    assert Install.objects.get().identifier_field == "_id"
    save(operator, shop, opened(operator, shop), identifier_field="user_id", understood="on")
    assert Install.objects.get().identifier_field == "user_id"


def test_the_question_about_another_identifier_field_says_how_often_it_was_seen(
    operator: Client, shop: Install
) -> None:
    without = message()
    without["data"]["user_id"] = without["data"].pop("_id")
    ingest.receive(shop, body(without))
    said = save(operator, shop, opened(operator, shop), identifier_field="user_id")
    assert "Of the newest 2 messages, 1 had _id. user_id was in 1 of the newest 1 without it." in said


def test_a_second_install_on_one_account_asks_first(operator: Client, shop: Install) -> None:
    address = reverse("admin:audiences_install_add")
    form = {
        "name": "Second",
        "odp_api_key": shop.odp_api_key,
        "odp_host": shop.odp_host,
        "identifier_field": "_id",
        "mechanism": "attribute",
        "enabled": "on",
        "batch_size": 500,
        "requests_per_second": 10,
        "max_in_flight": 20,
        "delay_limit_minutes": 15,
        "parked_limit_per_hour": 100,
    }
    said = operator.post(address, form).content.decode()
    assert "The install Shop sends to this ODP account already" in said
    assert Install.objects.count() == 1
    operator.post(address, {**form, "understood": "on"})
    assert Install.objects.count() == 2


def test_a_stale_form_changes_nothing(operator: Client, shop: Install) -> None:
    form = opened(operator, shop)
    Install.objects.update(enabled=False, batch_size=100)  # a concurrent change
    said = save(operator, shop, form, name="Renamed")
    assert "so nothing was saved. Open it again" in said
    again = Install.objects.get()
    assert (again.name, again.enabled, again.batch_size) == ("Shop", False, 100)


def test_a_save_leaves_the_columns_of_the_workers_alone(operator: Client, shop: Install) -> None:
    form = opened(operator, shop)
    backoff.apply(shop, Answer(Outcome.RETRY_LATER, "503: closed"))
    Install.objects.update(learned_batch_size=7)
    save(operator, shop, form, name="Renamed")
    again = Install.objects.get()
    assert (again.name, again.backoff_failures, again.learned_batch_size) == ("Renamed", 1, 7)
    assert again.backoff_reason == "503: closed"


# --- tokens ---------------------------------------------------------------------------------------------------


def revoke_page(client: Client, token: Token) -> str:
    return client.get(reverse("admin:audiences_token_revoke", args=[token.pk])).content.decode()


def test_revoking_says_which_token_lytics_uses(operator: Client, shop: Install) -> None:
    used = shop.tokens.get()
    Token.objects.filter(pk=used.pk).update(last_used_at=now())
    fresh = tokens.create(shop)
    asked = revoke_page(operator, used)
    assert f"Lytics used this token (…{used.secret[-4:]}) 0 s ago" in asked
    assert f"The other live token (…{fresh.secret[-4:]}) has never been used" in asked
    asked_of_fresh = revoke_page(operator, fresh)
    assert "has never been used. Calls with it" in asked_of_fresh
    assert f"The other live token (…{used.secret[-4:]}) was last used" in asked_of_fresh
    assert used.secret not in asked
    tokens.revoke(fresh)
    assert "It is the only live token, so every call is answered 401 then." in revoke_page(operator, used)


def test_a_token_used_since_the_dialog_is_asked_about_again(operator: Client, shop: Install) -> None:
    fresh = tokens.create(shop)
    address = reverse("admin:audiences_token_revoke", args=[fresh.pk])
    version_tag = operator.get(address).context["hidden"]
    Token.objects.filter(pk=fresh.pk).update(last_used_at=now())
    operator.post(address, version_tag)
    assert Token.objects.get(pk=fresh.pk).revoked_at is None
    operator.post(address, operator.get(address).context["hidden"])
    assert Token.objects.get(pk=fresh.pk).revoked_at is not None


def test_tokens_are_distinguished_by_their_last_characters(operator: Client, shop: Install) -> None:
    one, two = shop.tokens.get(), tokens.create(shop)
    for page in ("admin:audiences_token_changelist",):
        text = operator.get(reverse(page)).content.decode()
        assert f"…{one.secret[-4:]}" in text
        assert f"…{two.secret[-4:]}" in text
        assert one.secret not in text
    text = operator.get(reverse("admin:audiences_install_change", args=[shop.pk])).content.decode()
    assert f"…{one.secret[-4:]}" in text


# --- without a form -------------------------------------------------------------------------------------------


@pytest.fixture
def made(transactional_db: None) -> Install:
    """An install whose ODP doesn't answer, with an audience in ODP."""
    install = make_install()
    make_audience(install)
    return install


def changed(install: Install, **values: Any) -> Install:
    after = Install.objects.get(pk=install.pk)
    for name, value in values.items():
        setattr(after, name, value)
    return after


@pytest.mark.parametrize(
    "change",
    [
        {"mechanism": "list"},
        {"odp_prefix": "lytics_eu_"},
        {"odp_host": "http://127.0.0.1:8"},
        {"odp_api_key": "another.account"},
    ],
)
def test_one_place_decides_also_without_a_form(made: Install, change: dict[str, str]) -> None:
    assert set(guards.refusals(made, changed(made, **change))) == set(change)
    assert guards.refusals(made, changed(made)) == {}
    Audience.objects.update(segment_id=trials.SEGMENT_ID)
    assert guards.refusals(made, changed(made, **change)) == {}
    Audience.objects.update(segment_id="s1", provisioned_at=None)
    assert guards.refusals(made, changed(made, **change)) == {}


@pytest.mark.parametrize(("before", "after"), [("passthrough", "list"), ("list", "passthrough")])
def test_passthrough_is_left_and_chosen_with_a_new_install_only(made: Install, before: str, after: str) -> None:
    made.mechanism = before
    assert "Connect a new install" in guards.refusals(made, changed(made, mechanism=after))["mechanism"]


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (GuidedChange.Kind.ACCOUNT, "odp_api_key"),
        (GuidedChange.Kind.IDENTIFIER, "identifier_field"),
    ],
)
def test_a_guided_change_locks_only_its_own_field_and_only_until_it_ends(made: Install, kind: str, field: str) -> None:
    Audience.objects.update(provisioned_at=None)
    other, fields = make_install(name="Other"), {"odp_api_key": "another.account", "identifier_field": "email"}

    def locked(install: Install) -> set[str]:
        return {name for name in fields if guards.refusals(install, changed(install, **{name: fields[name]}))}

    begun = GuidedChange.objects.create(install=made, kind=kind, by="kim", reason="a test")
    assert (locked(made), locked(other)) == ({field}, set())
    assert guards.refusals(made, changed(made, batch_size=7)) == {}
    GuidedChange.objects.filter(pk=begun.pk).update(ended_at=now())
    assert locked(made) == set()


def test_the_events_of_the_last_hour_of_this_install_are_counted(made: Install) -> None:
    for install, queued, minutes in ((made, 5, 59), (made, 70, 61), (make_install(name="Other"), 900, 1)):
        at = now() - timedelta(minutes=minutes)
        Receipt.objects.create(install=install, received_at=at, queued=queued, bytes=1, messages=1, parked=0, skipped=0)
    (question,) = guards.questions(made, changed(made, identifier_field="email"))
    assert question.consequence.startswith("5 events were read")
    assert "email was in" not in question.consequence
    Audience.objects.update(provisioned_at=None)
    assert guards.questions(made, changed(made, identifier_field="email")) == []


def test_only_a_change_to_the_account_of_another_install_with_the_same_prefix_asks_first(made: Install) -> None:
    other = make_install(name="Other", odp_api_key="another.account")
    (question,) = guards.questions(made, changed(made, odp_api_key="another.key"))
    assert "The install Other sends to this ODP account already" in question.consequence
    assert guards.questions(made, changed(made, odp_api_key="third.key")) == []
    assert guards.questions(made, changed(made, odp_api_key="another.key", odp_prefix="lytics_eu_")) == []
    Install.objects.filter(pk=other.pk).update(odp_api_key=made.odp_api_key)
    assert guards.questions(made, changed(made, batch_size=7)) == []


def make_segment(odp: ThreadedSandbox, odp_id: str, *, key: str) -> None:
    odp.odp("POST", "/v3/schema/objects/customers/fields", FIELD, key=key)
    segment = {"description": "", "metadata": {"display_name": odp_id}, "definition": over(field_is_true("x"))}
    assert odp.odp("PUT", f"/v3/segments/{odp_id}", segment, key=key)[0] < 300


def test_a_key_with_another_public_part_belongs_to_the_account_that_has_the_audiences_of_lytics(
    odp: ThreadedSandbox, transactional_db: None
) -> None:
    """The audience of the test customer may be in every account."""
    made = make_install(odp)
    test_customers = make_audience(made, "sync_test")
    Audience.objects.filter(pk=test_customers.pk).update(segment_id=trials.SEGMENT_ID)
    make_audience(made, "new", provisioned=False)
    make_audience(make_install(name="Other"), "of_another_install")
    make_audience(made, "gold")
    odp.control("/sandbox/accounts", {"private_key": "another.account", **UNLIMITED})
    after, names = changed(made, odp_api_key="another.account"), ("sync_test", "new", "of_another_install", "gold")
    for name in names:
        assert "is not there" in guards.refusals(made, after)["odp_api_key"], name
        make_segment(odp, f"lytics_{name}", key="another.account")
    assert "it has lytics_gold too" in guards.refusals(made, after)["odp_api_key"]
    for name in names:
        make_segment(odp, f"lytics_{name}", key=odp.private_key)
    assert guards.refusals(made, after) == {}


def test_a_revoked_key_needs_no_proof_that_the_new_one_has_all_its_audiences(
    odp: ThreadedSandbox, transactional_db: None
) -> None:
    made = make_install(odp, odp_api_key="revoked.key")
    make_segment(odp, make_audience(made).odp_id, key=odp.private_key)
    assert guards.refusals(made, changed(made, odp_api_key=odp.private_key)) == {}
