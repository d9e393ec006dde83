"""Drafts: an install whose API key ODP never accepted shows what is missing, keeps its calls, and can be deleted."""

from importlib import import_module
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group
from django.db import IntegrityError, connection, transaction
from django.db.migrations.executor import MigrationExecutor
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now

from audiences.admin import installs as admin_installs
from audiences.admin import odp_live
from audiences.delivery import drafts
from audiences.insight import state, trials
from audiences.models import Audience, Event, GuidedChange, Install, Rhythm, Token
from audiences.operations import db_role, forgetting, installs
from audiences.receiving import ingest
from sandbox.odp.testing import ThreadedSandbox
from sandbox.odp.world import DEFAULT_PRIVATE_KEY
from tests.delivering import NOWHERE, drain_all, make_audience, make_install
from tests.messages import body, message
from tests.people import someone
from tests.test_admin import hidden, press, url

pytestmark = pytest.mark.django_db

ADD = "/admin/audiences/install/add/"


def typed(**values: str) -> dict[str, str]:
    """A filled-in form of a new install."""
    return {
        "name": "Acme Nordics",
        "region": "",
        "odp_api_key": DEFAULT_PRIVATE_KEY,
        "identifier_field": "_id",
        "mechanism": "attribute",
        "enabled": "on",
        "batch_size": "500",
        "requests_per_second": "10",
        "max_in_flight": "20",
        "delay_limit_minutes": "15",
        "parked_limit_per_hour": "100",
        **values,
    }


def saved(client: Client, **values: str) -> Any:
    return client.post(ADD, typed(**values), follow=True)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"odp_api_key": "public.wrong"}, "ODP rejects the API key"),
        ({"odp_host": NOWHERE}, "ODP could not be reached"),
    ],
    ids=["wrong key", "unreachable host"],
)
def test_an_install_whose_key_was_never_accepted_is_shown_once_as_a_draft(
    operator: Client, odp: ThreadedSandbox, values: dict[str, str], words: str
) -> None:
    answered = saved(operator, **{"odp_host": odp.url, **values})
    told = [(message.level_tag, str(message)) for message in answered.context["messages"]]
    assert len(told) == 1
    assert told[0][0] == "warning"
    assert told[0][1].startswith("Acme Nordics is saved as a draft. ")
    assert words in told[0][1]
    page = answered.content.decode()
    assert "What is missing:" in page
    assert words in page.split("What is missing:")[1]
    assert "Check the key" in page
    listed = operator.get("/admin/audiences/install/").content.decode()
    assert '<span class="ls-pill ls-held" title="ODP has not accepted' in listed
    assert ">draft</span>" in listed


def test_accepting_the_key_shows_one_banner_and_activates_the_install(operator: Client, odp: ThreadedSandbox) -> None:
    answered = saved(operator, odp_host=odp.url)
    told = [(message.level_tag, str(message)) for message in answered.context["messages"]]
    assert [level for level, _ in told] == ["success"]
    assert "ODP accepts the API key." in told[0][1]
    assert state.of_install(Install.objects.get()).word == "active"


@pytest.mark.django_db(transaction=True)
def test_no_transaction_is_open_while_odp_is_asked_about_the_key(
    boss: Client, odp: ThreadedSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would keep the row of the install locked, for which workers wait."""
    check_key, are_open = odp_live.check_key, list[bool]()

    def noted(install: Install) -> odp_live.KeyCheck:
        are_open.append(connection.in_atomic_block)
        return check_key(install)

    monkeypatch.setattr(admin_installs, "check_key", noted)
    saved(boss, odp_host=odp.url)
    install = Install.objects.get()
    page = boss.get(url("change", install))
    other = typed(odp_host=odp.url, opened=page.context["adminform"].form.initial["opened"], odp_api_key="public.wrong")
    answered = boss.post(url("change", install), other, follow=True)
    assert are_open == [False, False]
    assert "ODP rejects the API key" in "".join(map(str, answered.context["messages"]))


def test_a_draft_keeps_its_calls_and_sends_them_once_the_key_is_accepted(
    operator: Client, odp: ThreadedSandbox
) -> None:
    draft = make_install(odp, odp_api_key="public.wrong")
    ingest.receive(draft, body(message()))
    drain_all(draft)
    draft.refresh_from_db()
    assert state.of_install(draft).word == "draft"
    assert Event.objects.count() == 1
    Install.objects.filter(pk=draft.pk).update(odp_api_key=DEFAULT_PRIVATE_KEY)
    press(operator, "check", draft)
    drain_all(draft)
    draft.refresh_from_db()
    assert state.of_install(draft).word == "active"
    assert Audience.objects.get().lane.delivered_sequence == 1


def test_an_audience_that_was_made_proves_the_key_without_a_check(odp: ThreadedSandbox) -> None:
    made = make_install(odp)
    assert state.of_install(made).word == "draft"
    ingest.receive(made, body(message()))
    drain_all(made)
    made.refresh_from_db()
    assert state.of_install(made).word == "active"


def test_an_outage_does_not_turn_an_accepted_install_into_a_draft(operator: Client, odp: ThreadedSandbox) -> None:
    made = make_install(odp)
    press(operator, "check", made)
    Install.objects.update(odp_host=NOWHERE)
    press(operator, "check", made)
    made.refresh_from_db()
    assert state.of_install(made).word == "active"


def test_another_account_has_to_be_accepted_again(operator: Client, odp: ThreadedSandbox) -> None:
    made = make_install(odp)
    press(operator, "check", made)
    page = operator.get(url("change", made)).content.decode()
    operator.post(url("change", made), {**hidden(page), **typed(odp_host=NOWHERE, odp_api_key="")})
    made.refresh_from_db()
    assert made.odp_host == NOWHERE
    assert state.of_install(made).word == "draft"


# --- deleting a mistaken install ------------------------------------------------------------------------------


@pytest.fixture
def mistake() -> Install:
    made = Install(name="Mistake", odp_api_key="public.wrong", odp_host=NOWHERE)
    installs.create(made)
    return made


def test_a_mistaken_install_is_deleted_with_the_objects_that_the_dialog_lists(boss: Client, mistake: Install) -> None:
    asked = press(boss, "remove", mistake)
    assert "Mistake goes with its settings, its API key and its 1 token" in asked
    assert not Install.objects.exists()
    assert not Token.objects.exists()
    entry = LogEntry.objects.get()
    assert (entry.user.username, entry.object_repr) == ("admin", "Mistake")
    assert entry.change_message.startswith("Deleted")
    assert "Mistake" in boss.get("/admin/admin/logentry/").content.decode()


@pytest.mark.parametrize("name", ["viewer", "operator"])
def test_only_an_admin_deletes_an_install(mistake: Install, name: str) -> None:
    person = someone(name)
    assert person.post(url("remove", mistake), {"seen": ""}).status_code == 403
    assert url("remove", mistake) not in person.get(url("change", mistake)).content.decode()
    assert Install.objects.exists()


def called(install: Install) -> None:
    ingest.receive(install, body(message()))


def called_in_vain(install: Install) -> None:
    ingest.receive(install, b"[]")


def parked(install: Install) -> None:
    ingest.receive(install, b"what is this?")


def tried_out(install: Install) -> None:
    trials.start(install, by="kim")


def has_an_audience(install: Install) -> None:
    make_audience(install)


def forgot_a_customer(install: Install) -> None:
    assert forgetting.ask(install, "lee", tell_odp=False, by="kim")


def was_changed(install: Install) -> None:
    GuidedChange.objects.create(
        install=install, kind="mechanism", before="attribute", after="list", by="kim", reason="why"
    )


@pytest.mark.parametrize(
    "used", [called, called_in_vain, parked, tried_out, has_an_audience, forgot_a_customer, was_changed]
)
def test_an_install_with_dependent_rows_is_kept_and_the_reason_is_shown(
    boss: Client, mistake: Install, used: Any
) -> None:
    page = boss.get(url("remove", mistake)).content.decode()
    used(mistake)
    answered = boss.post(url("remove", mistake), hidden(page), follow=True)
    assert Install.objects.filter(pk=mistake.pk).exists()
    assert Token.objects.exists()
    why = drafts.undeletable(mistake)
    assert why.endswith("Switch it off instead.")
    assert [str(message) for message in answered.context["messages"]] == [f"Mistake can't be deleted. {why}"]
    shown = boss.get(url("change", mistake)).content.decode()
    assert url("remove", mistake) not in shown
    assert why.replace("'", "&#x27;") in shown


@pytest.mark.django_db(transaction=True)
def test_an_install_to_which_a_table_of_the_next_version_refers_is_kept(boss: Client, mistake: Install) -> None:
    page = boss.get(url("remove", mistake)).content.decode()
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE of_next_version"
            " (install_id bigint REFERENCES audiences_install (id) DEFERRABLE INITIALLY DEFERRED)"
        )
        cursor.execute("INSERT INTO of_next_version VALUES (%s)", [mistake.pk])
    try:
        answered = boss.post(url("remove", mistake), hidden(page), follow=True)
        assert [message.level_tag for message in answered.context["messages"]] == ["warning"]
        assert Install.objects.filter(pk=mistake.pk).exists()
        assert Token.objects.exists()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE of_next_version")


def without_asking(install: Install) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("DELETE FROM audiences_token WHERE install_id = %s", [install.pk])
        cursor.execute("DELETE FROM audiences_install WHERE id = %s", [install.pk])


@pytest.mark.django_db(transaction=True)
def test_the_process_role_deletes_a_mistaken_install_and_nothing_that_has_calls(mistake: Install) -> None:
    used = make_install(name="Used")
    called(used)
    with connection.cursor() as cursor:
        cursor.execute("DROP ROLE IF EXISTS deletes_installs")
        cursor.execute("CREATE ROLE deletes_installs")
        cursor.execute("GRANT USAGE ON SCHEMA public TO deletes_installs")
        cursor.execute("GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA public TO deletes_installs")
    try:
        with connection.cursor() as cursor:
            cursor.execute("SET ROLE deletes_installs")
        with pytest.raises(drafts.NotGrantedError):
            drafts.delete(mistake.pk)
        with connection.cursor() as cursor:
            cursor.execute("RESET ROLE")
        db_role.grant("deletes_installs")
        with connection.cursor() as cursor:
            cursor.execute("SET ROLE deletes_installs")
        assert drafts.delete(mistake.pk)
        assert not drafts.delete(used.pk)
        with pytest.raises(IntegrityError, match="foreign key"):
            without_asking(used)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("RESET ROLE")
            cursor.execute("DROP OWNED BY deletes_installs")
            cursor.execute("DROP ROLE deletes_installs")


def test_a_database_role_without_the_right_to_delete_gets_an_explanation(
    boss: Client, mistake: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> bool:
        raise drafts.NotGrantedError

    page = boss.get(url("remove", mistake)).content.decode()
    monkeypatch.setattr(drafts, "delete", refuse)
    answered = boss.post(url("remove", mistake), hidden(page), follow=True)
    assert "manage.py grant_role" in str(next(iter(answered.context["messages"])))


def test_the_role_admin_may_delete_installs_and_no_other_role() -> None:
    held = Group.objects.filter(permissions__codename="delete_install").values_list("name", flat=True)
    assert [*held] == ["admin"]


def test_another_key_makes_a_draft_only_of_an_install_without_audiences_in_odp() -> None:
    delivering, new = make_install(name="delivering"), make_install(name="new")
    make_audience(delivering)
    Install.objects.update(key_accepted_at=now())
    for install in (delivering, new):
        drafts.forget(install.pk)
    assert [*Install.objects.filter(key_accepted_at=None)] == [new]


def test_an_install_accepted_before_this_version_is_not_a_draft() -> None:
    """The migration fills the column from what was known."""
    checked, made, neither = (make_install(name=name) for name in ("checked", "made", "neither"))
    then = MigrationExecutor(connection).loader.project_state(("audiences", "0023_drafts")).apps
    for install, problem in ((checked, ""), (neither, "ODP rejects the API key")):
        then.get_model("audiences", "Confirmation").objects.create(
            install_id=install.pk, key_asked_at=now(), key_problem=problem
        )
    make_audience(made)
    Install.objects.update(key_accepted_at=None)
    import_module("audiences.migrations.0023_drafts").fill(then, None)
    assert {*Install.objects.filter(key_accepted_at__lte=now()).values_list("name", flat=True)} == {"checked", "made"}


def test_the_migration_keeps_the_key_check_and_an_old_row_does_not_hold_its_install() -> None:
    install = make_install()
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO audiences_confirmation (install_id, key_asked_at, key_problem, problem)"
            " VALUES (%s, now(), 'ODP rejects the API key', '')",
            [install.pk],
        )
        cursor.execute(import_module("audiences.migrations.0027_drop_confirmation").COPY)
    install.refresh_from_db()
    assert (drafts.missing(install), install.key_asked_at is not None) == ("ODP rejects the API key", True)
    assert drafts.delete(install.pk)
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


def test_the_front_page_has_one_item_for_all_drafts(viewer: Client) -> None:
    first = make_install()
    Install.objects.update(key_accepted_at=None)
    assert f"{first} is a draft" in viewer.get("/admin/").content.decode()
    second = Install(name="Second", odp_api_key="public.private", odp_host=NOWHERE)
    installs.create(second)
    Install.objects.update(key_accepted_at=None)
    text = viewer.get("/admin/").content.decode()
    assert "2 installs are drafts" in text
    assert f"{second}, {first}" in text
    Install.objects.update(key_accepted_at=now())
    assert "draft" not in viewer.get("/admin/").content.decode()


def test_a_key_that_could_not_be_checked_is_no_success(boss: Client) -> None:
    made = Install(name="Unreachable", odp_api_key="a.b", odp_host="http://127.0.0.1:9")
    installs.create(made)
    address = reverse("admin:audiences_install_check", args=[made.pk])
    shown = boss.post(address, {"seen": boss.get(address).context["hidden"]["seen"]}, follow=True)
    (only,) = shown.context["messages"]
    assert (only.level_tag, "could not be" in only.message) == ("warning", True)


def test_a_version_that_does_not_know_rhythms_deletes_an_install_that_has_one(mistake: Install) -> None:
    Rhythm.objects.create(install=mistake)
    without_asking(mistake)
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    assert not Rhythm.objects.exists()
