"""Several installs of one ODP account: an ODP id belongs to one audience of the account; a prefix avoids clashes."""

from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now

from audiences import naming
from audiences.delivery import holds, odp_account, provision, shared_ids
from audiences.encryption import Unreadable
from audiences.insight import similar_slugs, state, trials
from audiences.models import Audience, Install, Lane
from audiences.operations import guards, prefixes
from audiences.receiving import ingest
from odp.mechanisms import Refusal
from odp.outcomes import Answer
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import UNLIMITED, drain_all, enter, lane_of, make_audience, make_install
from tests.messages import body, message

pytestmark = pytest.mark.django_db(transaction=True)

USED = "The install First sends to the same ODP account and uses the ODP id lytics_gold already."


@pytest.fixture
def first(odp: ThreadedSandbox) -> Audience:
    """The audience lytics_gold of the first install, with a member, in ODP."""
    gold = make_audience(make_install(odp, name="First"), provisioned=False)
    enter(gold, "kim")
    drain_all(gold.install)
    return gold


@pytest.fixture
def second(odp: ThreadedSandbox, first: Audience) -> Audience:
    """An audience of the same ODP id in a second install of the account, which isn't in ODP."""
    return make_audience(make_install(odp, name="Second"), provisioned=False)


def read(pk: int) -> Audience:
    return Audience.objects.select_related("install", "lane").get(pk=pk)


def save(client: Client, install: Install, **changes: Any) -> str:
    address = reverse("admin:audiences_install_change", args=[install.pk])
    form = client.get(address).context["adminform"].form
    values = {name: form.initial.get(name, "") for name in form.fields}
    sent = {name: value for name, value in values.items() if value is not None and value is not False}
    return client.post(address, {**sent, **changes}, follow=True).content.decode()


# --- one id, one audience -------------------------------------------------------------------------------------


def test_the_second_audience_of_an_odp_id_is_blocked_and_the_first_keeps_its_members(
    odp: ThreadedSandbox, first: Audience, second: Audience
) -> None:
    enter(second, "lee")
    drain_all(second.install)
    assert lane_of(second).block_reason.startswith(USED)
    assert read(second.pk).provisioned_at is None
    assert odp.members("lytics_gold") == ["kim"]
    assert shared_ids.retired_before(second) is None, "there is no retired id to reuse"


def test_another_id_for_the_second_audience_leaves_the_campaigns_of_the_first_alone(
    operator: Client, first: Audience, second: Audience
) -> None:
    enter(second, "lee")
    drain_all(second.install)
    address = reverse("admin:audiences_audience_other-id", args=[second.pk])
    told = operator.get(address).context["consequence"]
    assert "lytics_gold stays in ODP as the audience of First." in told
    assert "no longer updated" not in told


def test_a_changed_secret_is_the_same_account(odp: ThreadedSandbox, first: Audience, second: Audience) -> None:
    public = first.install.odp_api_key.partition(".")[0]
    Install.objects.filter(pk=second.install_id).update(odp_api_key=f"{public}.changed")
    assert isinstance(shared_ids.conflict(read(second.pk)), Refusal)


@pytest.mark.parametrize("change", [{"odp_api_key": "another.key"}, {"odp_host": "http://127.0.0.1:9"}])
def test_another_account_may_have_the_same_id(
    odp: ThreadedSandbox, first: Audience, second: Audience, change: dict[str, str]
) -> None:
    Install.objects.filter(pk=second.install_id).update(**change)
    assert shared_ids.conflict(read(second.pk)) is None


def test_keys_that_can_not_be_decrypted_name_no_account() -> None:
    one, other = (Install(odp_api_key=Unreadable(f"cipher {n}"), odp_host="http://127.0.0.1:9") for n in (1, 2))
    assert not odp_account.same_account(one, other)


def test_of_two_new_audiences_the_older_one_gets_the_id(odp: ThreadedSandbox) -> None:
    old, young = (make_audience(make_install(odp, name=name), provisioned=False) for name in ("First", "Second"))
    enter(young, "lee")
    drain_all(young.install)
    assert lane_of(young).block_reason.startswith(USED)
    enter(old, "kim")
    drain_all(old.install)
    assert odp.members("lytics_gold") == ["kim"]


def test_an_id_that_a_younger_audience_has_in_odp_is_given_to_no_older_one(odp: ThreadedSandbox) -> None:
    old = make_audience(make_install(odp, name="Second"), provisioned=False)
    young = make_audience(make_install(odp, name="First"), provisioned=False)
    enter(old, "kim")
    Audience.objects.filter(pk=young.pk).update(provisioned_at=now())
    drain_all(old.install)
    assert lane_of(old).block_reason.startswith(USED)


def test_the_older_one_waits_while_the_younger_one_is_being_created(odp: ThreadedSandbox) -> None:
    """Its worker may have begun before the older row was committed."""
    old, young = (make_audience(make_install(odp, name=name), provisioned=False) for name in ("First", "Second"))
    enter(young, "lee")
    assert provision.claim(young.install_id) is not None
    assert isinstance(shared_ids.conflict(read(old.pk)), Answer)
    enter(old, "kim")
    drain_all(old.install)
    assert "Second is creating this ODP id" in read(old.pk).hold_reason
    assert lane_of(old).blocked_at is None
    Audience.objects.filter(pk=young.pk).update(making_until_at=now() - timedelta(seconds=1))
    provision.try_now(install_id=old.install_id)
    drain_all(old.install)
    assert odp.members("lytics_gold") == ["kim"]


def test_an_audience_that_is_in_odp_already_is_checked_and_resent_as_before(
    odp: ThreadedSandbox, first: Audience, second: Audience
) -> None:
    """Two that earlier versions created under one id go on: only creating one is refused."""
    Audience.objects.filter(pk=second.pk).update(provisioned_at=now())
    provision.look_again(second.pk)
    enter(second, "lee")
    drain_all(second.install)
    assert lane_of(second).blocked_at is None
    assert odp.members("lytics_gold") == ["kim", "lee"]


def test_the_audience_of_the_test_customers_is_shared(odp: ThreadedSandbox) -> None:
    for name in ("First", "Second"):
        install = make_install(odp, name=name)
        trial = trials.start(install, by="sam")
        assert trial is not None
        trials.send_straight_in(trial, trials.IN)
        drain_all(install)
    assert Lane.objects.filter(blocked_at=None, audience__odp_id="lytics_sync_test").count() == 2
    assert Audience.objects.filter(provisioned_at__isnull=False).count() == 2


def test_only_ids_in_use_keep_an_install_from_an_account(first: Audience, second: Audience) -> None:
    assert shared_ids.taken(second.install) == first
    Audience.objects.filter(pk=first.pk).update(provisioned_at=None)
    assert shared_ids.taken(second.install) is None, "the account doesn't have it yet"
    Audience.objects.filter(pk=first.pk).update(provisioned_at=now())
    Install.objects.filter(pk=first.install_id).update(odp_api_key="another.key")
    assert shared_ids.taken(Install.objects.get(pk=second.install_id)) is None, "another account"
    Install.objects.filter(pk=first.install_id).update(odp_api_key=first.install.odp_api_key)
    assert shared_ids.taken(second.install) == first
    holds.end_log(second.pk, second.last_sequence)
    holds.retire(second.pk)
    assert shared_ids.taken(second.install) is None
    test = {"segment_id": trials.SEGMENT_ID, "odp_id": "lytics_sync_test"}
    Audience.objects.filter(pk__in=(first.pk, second.pk)).update(**test)
    holds.take_back(second.pk)
    assert shared_ids.taken(second.install) is None


def test_another_id_is_a_way_out(operator: Client, odp: ThreadedSandbox, second: Audience) -> None:
    enter(second, "lee")
    drain_all(second.install)
    alerts = operator.get(reverse("admin:index")).context["alerts"]
    (alert,) = [alert for alert in alerts if "lytics_gold" in alert.what]
    assert USED in alert.why
    assert {"Use another ODP id", "Set aside"} <= {button.label for button in alert.buttons}
    address = reverse("admin:audiences_audience_other-id", args=[second.pk])
    seen = operator.get(address).context["hidden"]["seen"]
    operator.post(address, {"seen": seen, "odp_id": "lytics_gold_2", "reason": "the other one was first"})
    drain_all(second.install)
    assert odp.members("lytics_gold_2") == ["lee"]
    assert odp.members("lytics_gold") == ["kim"]


# --- a prefix of its own --------------------------------------------------------------------------------------


def test_another_prefix_is_a_way_out_for_all_blocked_audiences_at_once(
    operator: Client, odp: ThreadedSandbox, first: Audience, second: Audience
) -> None:
    silver = make_audience(first.install, "silver")
    twin = make_audience(second.install, "silver", provisioned=False)
    enter(second, "lee")
    enter(twin, "max")
    drain_all(second.install)
    assert Lane.objects.filter(blocked_at__isnull=False).count() == 2
    save(operator, second.install, odp_prefix="lytics_eu_")
    drain_all(second.install)
    assert odp.members("lytics_eu_gold") == ["lee"]
    assert odp.members("lytics_eu_silver") == ["max"]
    assert odp.members("lytics_gold") == ["kim"]
    assert (read(first.pk).odp_id, read(silver.pk).odp_id) == ("lytics_gold", "lytics_silver")


def test_an_id_without_the_former_prefix_stays() -> None:
    shop = make_install(odp_prefix="lytics_eu_")
    gold = make_audience(shop, provisioned=False)
    Audience.objects.update(odp_id="vip")
    assert (prefixes.apply(shop, before="lytics_"), read(gold.pk).odp_id) == (0, "vip")


def test_new_audiences_get_the_prefix_of_their_install(odp: ThreadedSandbox) -> None:
    shop = make_install(odp, odp_prefix="lytics_eu_")
    ingest.receive(shop, body(message()))
    audience = Audience.objects.select_related("install", "lane").get()
    assert audience.odp_id == "lytics_eu_gold_club"
    assert str(audience) == "lytics_eu_gold_club"
    assert state.warnings(audience.lane) == []
    assert similar_slugs.unnoticed() == []


def test_a_prefix_is_locked_once_an_audience_is_in_odp(operator: Client, first: Audience) -> None:
    said = save(operator, first.install, odp_prefix="lytics_eu_", understood="on")
    assert "1 audience of this install is in ODP under the prefix lytics_" in said
    assert Install.objects.get().odp_prefix == "lytics_"


@pytest.mark.parametrize("prefix", ["gold_", "lytics", "lytics_eu", "Lytics_", "lytics__", "lytics_é_", "lytics_-_"])
def test_an_invalid_prefix_is_refused(operator: Client, second: Audience, prefix: str) -> None:
    said = save(operator, second.install, odp_prefix=prefix)
    assert "A prefix is lytics_, or lytics_ and small letters" in said
    assert Install.objects.get(pk=second.install_id).odp_prefix == "lytics_"


@pytest.mark.parametrize("prefix", ["lytics_", "lytics_eu_", "lytics_2_", "lytics_a_b_"])
def test_a_valid_prefix_is_taken(prefix: str) -> None:
    Install(name="Shop", odp_api_key="public.secret", odp_prefix=prefix).full_clean()


def test_a_form_that_does_not_name_the_prefix_keeps_it(operator: Client, odp: ThreadedSandbox) -> None:
    shop = make_install(odp, odp_prefix="lytics_eu_")
    save(operator, shop, name="Renamed", odp_prefix="")
    again = Install.objects.get()
    assert (again.name, again.odp_prefix) == ("Renamed", "lytics_eu_")


def test_a_renamed_audience_whose_new_id_would_be_too_long_keeps_its_own(odp: ThreadedSandbox) -> None:
    shop = make_install(odp, odp_prefix="lytics_eu_")
    gold = make_audience(shop, provisioned=False)
    Audience.objects.update(odp_id=f"lytics_{'g' * 533}")
    assert (prefixes.apply(shop, before="lytics_"), len(read(gold.pk).odp_id)) == (0, 540)


def test_a_renamed_audience_whose_new_id_is_taken_keeps_its_own(odp: ThreadedSandbox) -> None:
    shop = make_install(odp, odp_prefix="lytics_eu_")
    taken = make_audience(shop, "eu_gold")
    gold = make_audience(shop, "gold", provisioned=False)
    assert prefixes.apply(shop, before="lytics_") == 0
    assert {read(taken.pk).odp_id, read(gold.pk).odp_id} == {"lytics_eu_gold", "lytics_gold"}


def test_a_second_install_with_the_same_prefix_asks_first_and_with_another_one_does_not(first: Audience) -> None:
    second = Install(name="Second", odp_api_key=first.install.odp_api_key, odp_host=first.install.odp_host)
    (question,) = guards.questions(None, second)
    assert "enter another prefix under More" in question.consequence
    second.odp_prefix = "lytics_eu_"
    assert guards.questions(None, second) == []


def test_the_command_that_creates_an_install_takes_a_prefix() -> None:
    call_command("create_install", "Shop", odp_api_key="public.secret", odp_prefix="lytics_eu_")
    assert Install.objects.get().odp_prefix == "lytics_eu_"


@pytest.mark.parametrize(
    ("odp_id", "slug", "shown"),
    [
        ("lytics_gold", "gold", True),
        ("lytics_eu_gold", "Gold", True),
        ("lytics_gold_5d2a91", "gold", False),
        ("lytics_marigold", "gold", False),
        ("lytics_gold", "gold-é", False),
    ],
)
def test_an_id_shows_its_slug_whatever_the_prefix(odp_id: str, slug: str, shown: bool) -> None:
    assert naming.shows(odp_id, slug) is shown


def test_accounts_of_the_sandbox_are_told_apart(odp: ThreadedSandbox, first: Audience, second: Audience) -> None:
    odp.control("/sandbox/accounts", {"private_key": "another.account", **UNLIMITED})
    Install.objects.filter(pk=second.install_id).update(odp_api_key="another.account")
    enter(second, "lee")
    drain_all(Install.objects.get(pk=second.install_id))
    assert lane_of(second).blocked_at is None
    assert odp.members("lytics_gold") == ["kim"]
