"""Properties of all pages of the admin: one name for one thing, a way back, and lists that say what they contain."""

import re

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now

from audiences.admin import verbs
from audiences.admin.navigation import sidebar
from audiences.models import Audience, Install, Lane
from tests.people import someone

pytestmark = pytest.mark.django_db


@pytest.fixture
def admin() -> Client:
    return someone("admin")


def menu() -> list[tuple[str, str]]:
    """Title and address of every entry."""
    request = type("Request", (), {"user": User.objects.get(), "path": "/"})()
    return [(item["title"], item["link"]) for part in sidebar(request) for item in part["items"]]


def test_a_page_is_titled_as_in_the_menu_and_leads_to_no_index_of_an_app(admin: Client) -> None:
    for title, url in menu():
        told = admin.get(url).content.decode()
        assert re.search(rf"<title>\s*{title} \|", told), (title, re.search(r"<title>[^<]*", told))
        assert "yielded into" not in told
        for app in ("audiences", "auth", "admin"):
            assert f'href="/admin/{app}/"' not in told, (title, app)


def test_the_last_part_of_the_breadcrumb_has_the_name_of_the_menu(admin: Client) -> None:
    names = {"Calls", "Runs", "Who did what", "Roles", "Users", "Installs"}
    for title, url in menu():
        if title in names:
            told = admin.get(url).content.decode()
            assert re.search(rf'<a href="{url}" class="align-middle[^>]*>\s*{title}\s*</a>', told), title


def test_the_history_of_a_thing_has_as_many_pages_as_it_has_entries(admin: Client) -> None:
    install = Install.objects.create(name="Shop")
    request = type("Request", (), {"user": User.objects.get()})()
    url = reverse("admin:audiences_install_history", args=[install.pk])
    assert "Nobody has changed this yet." in admin.get(url).content.decode()
    verbs.record(request, [install] * 101, "Retried.")
    first, second = (admin.get(url, {"p": page}).content.decode() for page in (1, 2))
    assert (first.count("Retried."), second.count("Retried.")) == (100, 1)
    assert ('rel="next"' in first, 'rel="next"' in second, 'rel="prev"' in second) == (True, False, True)
    assert "50000" not in first


def test_missing_and_forbidden_pages_have_a_way_back(admin: Client) -> None:
    nobody = User.objects.create_user("nobody", is_staff=True)
    nobody.groups.remove(*Group.objects.all())
    refused = Client()
    refused.force_login(nobody)
    for client, path, status in ((admin, "/admin/nothing/", 404), (refused, reverse("find_customer"), 403)):
        answer = client.get(path)
        assert answer.status_code == status
        assert f'href="{reverse("admin:index")}"' in answer.content.decode()


def test_the_list_of_installs_says_how_many_audiences_are_held_and_is_sorted_without_case(admin: Client) -> None:
    for name in ("Volkswagen", "acme", "Beta"):
        Install.objects.create(name=name, odp_api_key="a.b")
    acme = Install.objects.get(name="acme")
    for place, state in enumerate(({"blocked_at": now(), "block_reason": "x"}, {}, {})):
        segment = f"s{place}"
        audience = Audience.objects.create(
            install=acme, segment_id=segment, slug=segment, latest_slug=segment, odp_id=segment
        )
        Lane.objects.create(audience=audience, **state)
    url = reverse("admin:audiences_install_changelist")
    told = admin.get(url).content.decode()
    assert [*map(told.index, (">acme<", ">Beta<", ">Volkswagen<"))] == sorted(
        map(told.index, (">acme<", ">Beta<", ">Volkswagen<"))
    )
    assert told.count("1 blocked</a>") == 1
    assert "Volkswagen" not in admin.get(url, {"q": "ACM"}).content.decode()


def test_the_login_says_that_input_is_lost_when_a_session_ended(client: Client) -> None:
    install = Install.objects.create(name="Shop")
    ended = client.post(reverse("admin:audiences_install_change", args=[install.pk]), {"name": "Other"}, follow=True)
    assert "your session has ended" in ended.content.decode()
    assert "your session has ended" not in client.get(reverse("admin:login")).content.decode()


def test_a_keyboard_gets_past_the_menu_with_one_key(admin: Client) -> None:
    for title, url in menu():
        told = admin.get(url).content.decode()
        first = re.search(r"<body.*?<a [^>]*>([^<]*)", told, re.DOTALL)
        assert first is not None, title
        assert (first[1], 'id="content"' in told) == ("Skip to the content", True), title


def test_an_entry_in_the_history_counts_the_other_things() -> None:
    texts = [verbs.with_others("Released", things) for things in (1, 2, 3)]
    assert texts == ["Released.", "Released, with 1 other.", "Released, with 2 others."]
