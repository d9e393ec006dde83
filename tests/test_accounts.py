"""Users and roles in plain words: one role to choose, no hashes and no code names, and a button for locked logins."""

import re
from html import unescape

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, Permission, User
from django.test import Client
from django.urls import reverse

from audiences.admin.accounts import grantable, sentence
from tests.people import someone
from tests.test_admin import press, url

pytestmark = pytest.mark.django_db

PASSWORD = "long enough for anyone"


@pytest.fixture
def vera() -> User:
    person = User.objects.create_user("vera", password=PASSWORD, is_staff=True)
    person.groups.add(Group.objects.get(name="viewer"))
    return person


def page(client: Client, address: str) -> str:
    answered = client.get(address)
    assert answered.status_code == 200
    return unescape(answered.content.decode())


def roles(user: User) -> list[str]:
    return sorted(user.groups.values_list("name", flat=True))


def typed(**values: str) -> dict[str, str]:
    return {"username": "vera", "is_active": "on", "is_staff": "on", **values}


def test_the_page_of_a_person_shows_no_hash_no_code_words_and_one_choice_of_role(boss: Client, vera: User) -> None:
    shown = page(boss, url("change", vera))
    for word in ("algorithm", "pbkdf2", "md5", "iterations", "salt", "Staff status", "selectfilter", "Superuser"):
        assert word.lower() not in shown.lower(), word
    assert 'name="groups"' not in shown
    assert shown.count('name="role"') == 1
    assert '<option value="viewer" selected>' in shown
    assert "Can open these pages" in shown
    assert "../password/" in shown
    title = re.search(r"<title>(.*?)</title>", shown, re.DOTALL)
    assert title
    assert "vera" in title[1]
    assert not re.search(r">\s*Vera\s*<", shown)


def test_an_account_without_a_password_says_so(boss: Client, vera: User) -> None:
    assert "Stored, and shown to nobody." in page(boss, url("change", vera))
    vera.set_unusable_password()
    vera.save()
    assert "None, so nobody can log in with one." in page(boss, url("change", vera))


@pytest.mark.parametrize(("role", "held"), [("operator", ["operator"]), ("admin", ["admin"]), ("", [])])
def test_one_choice_gives_one_role_and_is_logged(boss: Client, vera: User, role: str, held: list[str]) -> None:
    boss.post(url("change", vera), typed(role=role))
    assert roles(vera) == held
    assert "Role" in LogEntry.objects.get().get_change_message()


def test_an_account_with_several_roles_keeps_them_until_another_choice(boss: Client, vera: User) -> None:
    vera.groups.add(Group.objects.get(name="operator"))
    assert "Several: operator, viewer" in page(boss, url("change", vera))
    boss.post(url("change", vera), typed(role="several", first_name="Vera"))
    assert roles(vera) == ["operator", "viewer"]
    boss.post(url("change", vera), typed(role="viewer"))
    assert roles(vera) == ["viewer"]


def test_a_role_that_is_not_there_changes_nothing(boss: Client, vera: User) -> None:
    assert "Select a valid choice" in boss.post(url("change", vera), typed(role="emperor")).content.decode()
    assert roles(vera) == ["viewer"]


def test_an_outdated_page_neither_unlocks_a_person_nor_restores_a_permission(admin_client: Client, vera: User) -> None:
    group = Group.objects.get(name="viewer")
    pages = [reverse("admin:auth_user_change", args=[vera.pk]), reverse("admin:auth_group_change", args=[group.pk])]
    opened = [admin_client.get(page).context["adminform"].form.initial["opened"] for page in pages]
    User.objects.filter(pk=vera.pk).update(is_active=False)
    lost = group.permissions.all()[0]
    group.permissions.remove(lost)
    answers = {"username": "vera", "is_active": "on", "is_staff": "on", "opened": opened[0]}
    rights = {"name": "viewer", "permissions": [lost.pk], "opened": opened[1]}
    for page, answer in zip(pages, (answers, rights), strict=True):
        assert "Open it again" in admin_client.post(page, answer).content.decode()
    assert not User.objects.get(pk=vera.pk).is_active
    assert lost not in group.permissions.all()


def test_a_new_person_gets_a_role_in_one_step(boss: Client) -> None:
    answers = {"username": "kim", "role": "operator", "password1": PASSWORD, "password2": PASSWORD}
    boss.post("/admin/auth/user/add/", {**answers, "usable_password": "true"})
    kim = User.objects.get(username="kim")
    assert roles(kim) == ["operator"]
    assert kim.is_staff
    assert logs_in("kim")


def test_the_list_and_the_page_open_for_viewers(vera: User) -> None:
    client = someone("", name="looker")
    User.objects.get(username="looker").user_permissions.add(Permission.objects.get(codename="view_user"))
    shown = page(client, url("change", vera))
    assert "viewer" in shown
    assert 'name="role"' not in shown
    assert client.post(url("change", vera), typed(role="admin")).status_code == 403


# --- roles ---------------------------------------------------------------------------------------------------


def test_permissions_read_as_sentences_without_code_names(boss: Client, admin_client: Client) -> None:
    role = Group.objects.get(name="operator")
    for client in (boss, admin_client):
        shown = page(client, url("change", role))
        assert "Pause an audience" in shown
        assert "See audiences" in shown
        assert "audiences | " not in shown
        assert "Audience sync |" not in shown
        words = re.sub(r"<[^>]*>", "", shown)
        assert not re.search(r"(view|change|delete)_(install|audience|parked)", words)


def test_every_sentence_is_shown_once() -> None:
    told = [sentence(permission) for permission in grantable()]
    assert len(told) == len(set(told))
    assert all(re.fullmatch(r"[A-Z][A-Za-z ']+", words) for words in told), told


def test_all_permissions_of_the_roles_can_be_granted() -> None:
    held = Permission.objects.filter(group__isnull=False).distinct()
    shown = set(grantable().values_list("pk", flat=True))
    # Lanes and guided changes have no page.
    unseen = {permission.codename for permission in held if permission.pk not in shown}
    assert unseen == {"view_lane", "view_guidedchange"}


def test_saving_a_role_keeps_permissions_that_its_form_does_not_show(admin_client: Client) -> None:
    role = Group.objects.get(name="viewer")
    hidden = Permission.objects.get(codename="add_session")
    role.permissions.add(hidden)
    kept = list(grantable().filter(group=role).exclude(codename="find_customer").values_list("pk", flat=True))
    admin_client.post(url("change", role), {"name": "viewer", "permissions": kept})
    assert role.permissions.filter(pk=hidden.pk).exists()
    assert not role.permissions.filter(codename="find_customer").exists()
    assert set(grantable().filter(group=role).values_list("pk", flat=True)) == set(kept)


# --- locked logins -------------------------------------------------------------------------------------------


def wrong_passwords(name: str, times: int) -> None:
    for _ in range(times):
        Client().post("/admin/login/", {"username": name, "password": "wrong"})


def logs_in(name: str) -> bool:
    answered = Client().post("/admin/login/", {"username": name, "password": PASSWORD})
    return answered.status_code == 302


def test_a_locked_person_is_unlocked_from_their_page(boss: Client, vera: User) -> None:
    assert "Unlock login" not in page(boss, url("change", vera))
    wrong_passwords("vera", 10)
    assert not logs_in("vera")
    assert "Unlock login" in page(boss, url("change", vera))
    asked = press(boss, "unlock", vera)
    assert "locked after too many wrong passwords from 127.0.0.1" in asked
    assert logs_in("vera")
    entry = LogEntry.objects.get()
    assert (entry.user.username, entry.change_message) == ("admin", "Unlocked the login of vera.")
    assert "Unlock login" not in page(boss, url("change", vera))


def test_a_few_wrong_passwords_lock_no_account(boss: Client, vera: User) -> None:
    wrong_passwords("vera", 3)
    assert "Unlock login" not in page(boss, url("change", vera))


@pytest.mark.parametrize("role", ["", "viewer", "operator"])
def test_unlocking_needs_the_permission_to_change_people(vera: User, role: str) -> None:
    wrong_passwords("vera", 10)
    assert someone(role, name="other").post(url("unlock", vera)).status_code == 403
    assert not logs_in("vera")


def test_an_admin_does_not_unlock_a_superuser(boss: Client) -> None:
    root = User.objects.create_superuser("root", password=PASSWORD)
    wrong_passwords("root", 10)
    assert boss.post(url("unlock", root)).status_code == 403
    assert not logs_in("root")


def test_the_login_page_says_who_resets_a_forgotten_password(client: Client) -> None:
    shown = page(client, "/admin/login/")
    assert "Forgot your password?" in shown
    assert "manage.py changepassword" in shown
