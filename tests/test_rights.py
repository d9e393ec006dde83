"""Permissions: every page as anonymous, without a role, as viewer, operator and admin; and masked content."""

import itertools
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from django.contrib import admin
from django.contrib.admin.exceptions import DisallowedModelAdminLookup
from django.contrib.admin.models import LogEntry
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.auth.models import Group, User
from django.contrib.messages.storage.fallback import FallbackStorage
from django.db import connection, transaction
from django.test import Client, RequestFactory
from django.urls import reverse
from django.utils.timezone import now

from audiences import odp_hosts
from audiences.admin import masks
from audiences.admin import parked as parked_pages
from audiences.admin.pages import mask
from audiences.admin.parameters import whole_number
from audiences.admin.periods import ByPeriod
from audiences.admin.verbs import way_back
from audiences.encryption import encrypt
from audiences.models import Audience, Audit, Delivery, Install, Parked, Receipt, Resend, Run, Token
from audiences.operations import installs, troubles
from audiences.operations.troubles import Seen
from audiences.receiving import ingest, tokens
from lytics_sync import settings as the_settings
from odp import redact
from odp.client import Client as OdpClient
from tests import every_url
from tests.delivering import sandbox
from tests.messages import message

pytestmark = pytest.mark.django_db

SECRETIVE = "anna.maria@example.com"
MODELS = ("install", "audience", "parked", "receipt", "run", "delivery", "token", "resend")


@pytest.fixture
def shop() -> Install:
    """An install with one of everything; an audience's name and a reason that only those with a role may read."""
    made = Install(name="Shop", odp_api_key="public.private", odp_host="http://127.0.0.1:9")
    installs.create(made)
    ingest.receive(made, json.dumps([message(), message(who=None)]).encode())
    audience = Audience.objects.get()
    delivery = Delivery.objects.create(
        install=made,
        endpoint="/v3/profiles",
        opened_at=now(),
        closed_at=now(),
        outcome="refused",
        items=1,
        bytes=2,
        worker="w",
        version="0",
        answer=json.dumps({"detail": {"message": f"fs_user_id '{SECRETIVE}' is invalid"}}),
    )
    Run.objects.create(
        audience=audience,
        delivery=delivery,
        first_sequence=1,
        last_sequence=1,
        sent=1,
        folded=0,
        opened_at=now(),
        closed_at=now(),
        outcome="refused",
    )
    troubles.check([Seen(kind="blocked", what="gold is blocked", path="/admin/", install=made.pk)])
    Audit.objects.create(install=made, audience=audience, mode="quick", by="kim", ended_at=now())
    return made


def someone(role: str | None) -> Client:
    client = Client()
    if role is None:
        return client
    person = User.objects.create_user(role, password="long enough for anyone", is_staff=True)
    if role != "none":
        person.groups.add(Group.objects.get(name=role))
    client.force_login(person)
    return client


def pages() -> Iterator[str]:
    yield reverse("admin:index")
    yield reverse("admin:audiences_live")
    yield reverse("find_customer")
    for model in MODELS:
        yield reverse(f"admin:audiences_{model}_changelist")
    for thing in (Install, Audience, Parked, Receipt, Run, Delivery, Token):
        row: Any = thing._default_manager.first()
        yield reverse(f"admin:audiences_{thing._meta.model_name}_change", args=[row.pk])
    yield reverse("admin:auth_user_changelist")
    yield reverse("admin:auth_group_changelist")
    yield reverse("admin:auth_user_change", args=[User.objects.latest("pk").pk])
    yield reverse("admin:auth_group_change", args=[Group.objects.get(name="viewer").pk])
    yield reverse("admin:admin_logentry_changelist")


PEOPLES = ("auth_user", "auth_group", "logentry")


def test_an_account_without_a_role_sees_nothing(shop: Install) -> None:
    User.objects.create_user("kim")
    for page in pages():
        assert Client().get(page).status_code == 302, page


def test_an_account_without_a_role_sees_no_names_and_no_reasons(shop: Install) -> None:
    person = someone("none")
    for page in pages():
        answer = person.get(page)
        text = answer.content.decode()
        assert answer.status_code == (200 if page == reverse("admin:index") else 403), page
        assert "gold_club" not in text, page
        assert "Shop" not in text, page
    assert "No role yet" in person.get(reverse("admin:index")).content.decode()


@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
def test_each_role_sees_its_pages_and_only_an_admin_those_of_people(shop: Install, role: str) -> None:
    person = someone(role)
    for page in pages():
        of_people = "/auth/" in page or "/logentry/" in page
        assert person.get(page).status_code == (403 if of_people and role != "admin" else 200), page


# --- every URL that there is ----------------------------------------------------------------------------------


@pytest.fixture
def visitor(shop: Install) -> tuple[User, Client]:
    """An account whose permissions each test chooses, and a row of every table that a URL needs."""
    Resend.objects.create(
        install=shop, audience=Audience.objects.get(), kind="resync", total=1, by=SECRETIVE, reason=SECRETIVE
    )
    user = User.objects.create_user("kim", is_staff=True)
    LogEntry.objects.create(user=user, object_repr="gold_club", action_flag=2, change_message=SECRETIVE)
    client = Client()
    client.force_login(user)
    return user, client


# The one select of the admin that could complete the names of installs.
COMPLETED = "app_label=audiences&model_name=token&field_name=install"


def tells(answer: Any) -> bool:
    text = b"".join(answer) if answer.streaming else answer.content
    return any(secret.encode() in text for secret in ("gold_club", "Shop", SECRETIVE))


def test_no_url_answers_an_account_that_lacks_one_of_its_permissions(visitor: tuple[User, Client]) -> None:
    """405 is the response to a GET of a POST-only URL. A redirect is a failure: it may follow an action."""
    user, client = visitor
    open_ones = []
    for url in every_url.urls():
        if url.name in every_url.OPEN:
            continue
        for missing in url.needs or [()]:
            user.user_permissions.set(every_url.permissions(without=missing))
            for ask in (client.get, client.post):
                answer = ask(url.path)
                if answer.status_code not in (403, 404, 405) or tells(answer):
                    open_ones.append(f"{ask.__name__} {url.path} without {missing}: {answer.status_code}")
    assert open_ones == []


def test_every_url_answers_an_account_with_exactly_its_permissions(visitor: tuple[User, Client]) -> None:
    """Otherwise the test before would prove nothing: a URL that answers no account would pass it."""
    user, client = visitor
    closed_ones = []
    for url in every_url.urls():
        if url.name not in every_url.OPEN and url.needs is not None:
            user.user_permissions.set(every_url.permissions(only=url.needs))
            answer = client.get(url.path)
            answer = client.post(url.path) if answer.status_code == 405 else answer
            if answer.status_code not in (200, 302):
                closed_ones.append(f"{url.path}: {answer.status_code}")
    assert closed_ones == []


def test_the_page_of_an_install_lists_its_tokens_for_people_who_may_see_tokens(visitor: tuple[User, Client]) -> None:
    user, client = visitor
    shop = Install.objects.get()
    ending, page = tokens.ending(shop.tokens.get()), reverse("admin:audiences_install_change", args=[shop.pk])
    for needs in (("audiences.view_install",),), (("audiences.view_install",), ("audiences.view_token",)):
        user.user_permissions.set(every_url.permissions(only=needs))
        assert (ending in client.get(page).content.decode()) is (len(needs) == 2)


def test_a_url_without_permissions_reveals_nothing(visitor: tuple[User, Client]) -> None:
    _, client = visitor
    urls = [url for url in every_url.urls() if url.name in every_url.OPEN and url.name != "logout"]
    for url in urls:
        # Parts of the names, because the login page repeats its own address.
        for query in ("", "?s=sho", "?s=gold_cl", f"?term=sho&{COMPLETED}"):
            for ask in (client.get, client.post):
                answer = ask(url.path + query)
                assert not tells(answer), (url, query)
                assert answer.status_code < 500, (url, query)


def test_only_the_login_answers_anonymous_visitors(visitor: tuple[User, Client]) -> None:
    for url in every_url.urls():
        if url.name in ("login", "jsi18n"):
            continue
        for ask in (Client().get, Client().post):
            answer = ask(url.path)
            assert answer.status_code in (301, 302, 403, 404, 405), url
            assert not tells(answer), url


@pytest.mark.parametrize("role", ["none", "viewer", "operator", "admin"])
def test_nothing_of_history_is_deleted_or_added_by_anybody(shop: Install, role: str) -> None:
    person = someone(role)
    for model in ("audience", "parked", "receipt", "run", "delivery", "token", "resend"):
        assert person.post(f"/admin/audiences/{model}/add/", {}).status_code in (403, 404), model
    for thing in (Audience, Parked, Receipt, Run, Delivery, Token):
        row: Any = thing._default_manager.first()
        address = f"/admin/audiences/{thing._meta.model_name}/{row.pk}/delete/"
        assert person.post(address, {"post": "yes"}).status_code in (403, 404), address
        assert thing._default_manager.filter(pk=row.pk).exists()


def test_a_superuser_deletes_no_history_either(shop: Install, admin_client: Client) -> None:
    for thing in (Audience, Parked, Receipt, Run, Delivery, Token):
        row: Any = thing._default_manager.first()
        admin_client.post(f"/admin/audiences/{thing._meta.model_name}/{row.pk}/delete/", {"post": "yes"})
        assert thing._default_manager.filter(pk=row.pk).exists(), thing


@pytest.mark.parametrize(
    ("role", "action", "resolution"),
    [
        ("none", "release_selected", ""),
        ("viewer", "release_selected", ""),
        ("operator", "discard_selected", ""),
        ("viewer", "discard_selected", ""),
        ("admin", "discard_selected", "discarded"),
        ("operator", "release_selected", "released"),
    ],
)
def test_ticked_items_are_released_and_discarded_with_permission(
    shop: Install, role: str, action: str, resolution: str
) -> None:
    item = Parked.objects.get()
    Install.objects.update(identifier_field="meta", allow_top_level_identifier=False)
    Parked.objects.update(raw=encrypt(json.dumps(message(field="meta")).encode()))
    person, page = someone(role), reverse("admin:audiences_parked_changelist")
    asked = person.post(page, {"action": action, "_selected_action": [item.pk]})
    version_tag = parked_pages._version_tag([item.pk])
    answers = {"action": action, "_selected_action": [item.pk], "seen": version_tag, "reason": "a test"}
    person.post(page, answers)
    item.refresh_from_db()
    assert item.resolution == resolution, asked.status_code


def test_a_discard_writes_history_only_for_the_items_that_it_discarded(shop: Install) -> None:
    """A colleague releases one of two ticked items after the page has read them and before it discards them."""
    first = Parked.objects.get()
    second = Parked.objects.create(install=first.install, reason=first.reason, raw=first.raw)
    ids, person = [first.pk, second.pk], someone("admin")

    def colleague(execute: Any, sql: str, *rest: Any) -> Any:
        if "audiences_parked" in sql and ("FOR UPDATE" in sql or sql.startswith("UPDATE")) and not closed:
            closed.append(second.pk)
            Parked.objects.filter(pk=second.pk).update(closed_at=now(), closed_by="kim", resolution="released")
        return execute(sql, *rest)

    closed: list[int] = []
    answers = {"action": "discard_selected", "_selected_action": ids, "seen": parked_pages._version_tag(ids)}
    with connection.execute_wrapper(colleague):
        page = person.post(reverse("admin:audiences_parked_changelist"), {**answers, "reason": "a test"}, follow=True)
    assert closed
    told = LogEntry.objects.filter(content_type__model="parked", change_message__startswith="Discarded")
    assert list(told.values_list("object_id", "change_message")) == [(str(first.pk), "Discarded. Reason: a test")]
    assert "Discarded 1. 1 item had been released or discarded before." in page.content.decode()


def test_an_admin_who_is_not_a_superuser_changes_no_superuser(shop: Install) -> None:
    boss = User.objects.create_superuser("boss", password="long enough for anyone")
    person = someone("admin")
    before = User.objects.get(pk=boss.pk).password
    new = {"password1": "another long one 1", "password2": "another long one 1", "usable_password": "true"}
    assert person.post(f"/admin/auth/user/{boss.pk}/password/", new).status_code == 403
    person.post(f"/admin/auth/user/{boss.pk}/change/", {"username": "boss", "is_staff": ""})
    boss.refresh_from_db()
    assert (boss.password, boss.is_staff, boss.is_superuser) == (before, True, True)


@pytest.mark.parametrize(
    "asked", ["https://evil.example/", "//evil.example", "http:evil", "javascript:alert(1)", "/\\evil.example", "\x00/"]
)
def test_no_button_leads_to_another_site(shop: Install, asked: str, rf: Any) -> None:
    assert way_back(rf.get("/admin/", {"next": asked}), "/admin/x/") == "/admin/x/"
    assert way_back(rf.get("/admin/", {"next": "/admin/audiences/"}), "/admin/x/") == "/admin/audiences/"
    person = someone("operator")
    audience = Audience.objects.get()
    address = reverse("admin:audiences_audience_pause", args=[audience.pk])
    for headers in ({}, {"HX-Request": "true"}):
        answer = person.post(f"{address}?next={asked}", {"reason": "x"}, headers=headers)
        for name in ("Location", "HX-Redirect"):
            assert "evil" not in answer.headers.get(name, "")


# --- Masked content -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("identifier", ["a", "anna", "kim123", "anna@x.de", SECRETIVE])
def test_an_identifier_of_any_length_is_masked(identifier: str) -> None:
    shown = mask(identifier)
    assert identifier not in shown or len(identifier) == 1
    assert "•" in shown


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (f"fs_user_id '{SECRETIVE}' is invalid", "fs_user_id '•••' is invalid"),
        (f"{SECRETIVE} has no profile", "••• has no profile"),
        ('the value "4711" of "fs_user_id" is unknown', 'the value "•••" of "fs_user_id" is unknown'),
        ("field 'lytics_gold' must be a boolean", "field 'lytics_gold' must be a boolean"),
        ("not one of our words", "not one of our words"),
        ("customer `4711` and ‘kim’ and “lee”", "customer `•••` and ‘•••’ and “•••”"),
        ("anna%40example.com is unknown", "••• is unknown"),
        ("no 'anna_guid' here", "no '•••' here"),
    ],
)
def test_responses_of_odp_are_stored_without_the_customers_they_quote(said: str, shown: str) -> None:
    assert redact.words(said) == shown


@pytest.mark.parametrize("identifier", ["4711-kim", "+4917012345", "kim_id", "a b/c", "Zoë", "x.y:z", "fs-1?"])
@pytest.mark.parametrize(
    "said",
    [
        "customer {} is unknown",
        "fs_user_id={}, which is too long",
        "'{}' and (\"{}\")",
        "{}: no such customer",
        "GET /v3/profiles?id={}",
    ],
)
def test_no_reason_names_the_customers_of_its_request(identifier: str, said: str) -> None:
    """However ODP spells it: the values that were sent are known."""
    body = json.dumps([{"attributes": {"fs_user_id": identifier, "lytics_gold": True}}]).encode()
    for spelled in (identifier, quote(identifier, safe="")):
        shown = redact.without(redact.words(said.format(spelled, spelled)), redact.values_of(body))
        assert spelled not in shown
        assert redact.HIDDEN in shown
    assert redact.without("lytics_gold of fs_user_id", redact.values_of(body)) == "lytics_gold of fs_user_id"


@pytest.mark.parametrize("path", ["/v3/profiles", "/v3/events", "/v3/lists/subscriptions"])
def test_no_response_names_the_customers_of_its_request(path: str) -> None:
    said = json.dumps({"detail": {"invalids": [{"event": 0, "message": "customer 4711-kim is unknown"}]}})
    with sandbox() as odp:
        odp.fault({"path": path}, {"status": 400, "body": said})
        asking = OdpClient(host=odp.url, api_key="public.private")
        answer = asking.call("POST", path, body=b'[{"id": "4711-kim"}]', seconds=5)
    assert answer.named == {0: "customer ••• is unknown"}
    assert "kim" not in answer.reason


def test_the_answer_of_odp_is_masked_until_an_admin_asks(shop: Install) -> None:
    delivery = Delivery.objects.get()
    page = reverse("admin:audiences_delivery_change", args=[delivery.pk])
    for role in ("viewer", "operator", "admin"):
        assert SECRETIVE not in someone(role).get(page).content.decode(), role


def test_profile_fields_with_the_names_of_the_layout_are_masked() -> None:
    """At any depth but their own place."""
    names = ("type", "event", "object", "change", "slug", "meta", "segment_events", "enter", "exit", "segment_id")
    one = message(profile=dict.fromkeys(names, SECRETIVE), source=SECRETIVE)
    one["data"] |= {name: {"x": SECRETIVE} for name in names if name != "segment_events"}
    one["data"]["nested"] = {"meta": {"type": SECRETIVE}, "segment_events": [SECRETIVE], "phone": 491771234567}
    for raw in (json.dumps(one), json.dumps([one])):
        shown = masks.masked(raw)
        assert SECRETIVE not in shown
        assert "491771234567" not in shown
        assert '"gold_club"' in shown
        assert '"job-7"' in shown


@pytest.mark.parametrize(
    "put",
    [
        lambda one: one.update(type={"email": "kim 4711"}),
        lambda one: one.update(type=["kim 4711"] * 2 + [{"id": {"x": "kim 4711"}}], specversion="kim 4711@x"),
        lambda one: one["meta"].update(email="kim 4711", object={"name": "kim 4711"}),
        lambda one: one["data"]["segment_events"].append({"email": "kim 4711", "slug": ["kim 4711"]}),
        lambda one: one["data"]["segment_events"][0].update(who="kim 4711", event={"enter": "kim 4711"}),
        lambda one: one.update({"kim 4711@x": 1}),
        lambda one: one["meta"].update({"kim 4711@x": 1}),
        lambda one: one["data"].update({"kim 4711@x": 1}),
        lambda one: one["data"].update(opened={"+49 177 4711": 1}),
        lambda one: one["data"].update(opened={"kim 4711@x": {"kim 4711" * 20: 1}}),
    ],
)
def test_the_layout_of_an_item_shows_only_known_field_names(put: Any) -> None:
    one = message()
    put(one)
    assert " 4711" not in masks.masked(json.dumps(one)).replace(redact.HIDDEN, "")


# --- pages that don't break -----------------------------------------------------------------------------------


BODIES = [
    b"[" * 50_000,
    b'{"a":' * 50_000,
    b"\xff\xfe\x00",
    b"",
    b"null",
    b'"\\ud800"',
    b'{"\\ud800": 1}',
    b"1e999999",
    b"[NaN, Infinity]",
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body[:12].decode("latin-1"))
@pytest.mark.parametrize("unmasked", [False, True])
def test_the_page_of_a_parked_item_opens_with_any_content(shop: Install, body: bytes, unmasked: bool) -> None:
    Parked.objects.update(raw=encrypt(body))
    person, item = someone("admin"), Parked.objects.get()
    if unmasked:
        reveal = reverse("admin:audiences_parked_reveal", args=[item.pk])
        person.post(reveal, {"seen": person.get(reveal).context["hidden"]["seen"]})
        assert person.session["unmasked"] == item.pk
    assert person.get(reverse("admin:audiences_parked_change", args=[item.pk])).status_code == 200


@pytest.mark.parametrize("answer", ["[" * 1_900, '{"a":' * 400, "\ufffd\u202e", "", "null", "NaN", '{"\\ud800": 1}'])
def test_the_page_of_a_delivery_opens_with_any_response(shop: Install, answer: str) -> None:
    Delivery.objects.update(answer=answer)
    page = reverse("admin:audiences_delivery_change", args=[Delivery.objects.get().pk])
    assert someone("viewer").get(page).status_code == 200


ODD = [
    "\x00",
    "%00",
    "'",
    "-1",
    "9" * 40,
    # Python reads no number of over 4,300 digits.
    "9" * 5_000,
    "nan",
    "é" * 300,
    "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    "[",
    "1,2",
    "",
]


def read_names(page: Any) -> Iterator[tuple[Any, str]]:
    """The names in an address that a list reads, each with the code that reads it."""
    for name in ("q", "p", "o"):
        yield name, name
    for narrowed in page.list_filter:
        if isinstance(narrowed, str):
            kind = page.model._meta.get_field(narrowed).get_internal_type()
            yield kind, f"{narrowed}__exact" if kind == "BooleanField" else f"{narrowed}__id__exact"
        elif issubclass(narrowed, ByPeriod):
            yield from (((ByPeriod, name), name) for name in ("since", "until"))
        else:
            yield narrowed, narrowed.parameter_name


@pytest.mark.parametrize(
    ("text", "number"), [("", None), ("-1", None), ("²", None), ("12", 12), ("9" * 5_000, 10**18 - 1)]
)
def test_a_number_is_read_from_digits_and_fits_into_a_column(text: str, number: int | None) -> None:
    assert whole_number(text) == number


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd)[:12])
def test_no_text_in_an_address_makes_a_page_fail(
    shop: Install, odd: str, rf: RequestFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each list reads each of its names; what is shown of a name is the same in all lists, so one list shows it."""
    person, boss = someone("admin"), User.objects.create_superuser("boss")
    shown = set()
    for page in admin.site._registry.values():
        address = reverse(f"admin:{page.opts.app_label}_{page.opts.model_name}_changelist")
        for code, name in read_names(page):
            if code not in shown:
                shown.add(code)
                assert person.get(address, {name: odd}).status_code < 500, (page, name)
                continue
            request = rf.get(address, {name: odd})
            request.user, request.session = boss, person.session
            request._messages = FallbackStorage(request)  # type: ignore[attr-defined] # as its middleware does
            with monkeypatch.context() as patch:
                patch.setattr(admin.site, "each_context", lambda _: {})  # the menu, which reads no names
                assert page.changelist_view(request).status_code < 500, (page, name)
    for path, query in (
        ("/admin/", {"hours": odd, "install": odd}),
        ("/admin/", {"all": odd or "all", "p": odd}),
        ("/admin/", {"all": "all", "kind": odd}),
        ("/admin/find-customer/", {"event": odd}),
        ("/admin/find-customer/", {"event": f"{odd}-{odd}"}),
        ("/admin/audiences/live/", {"since": odd, "install": odd}),
        (reverse("admin:audiences_audience_change", args=[Audience.objects.get().pk]), {"before": odd}),
        *(("/admin/audiences/run/", {name: odd}) for name in ("e", "next", "unknown", "delivery__id__exact")),
    ):
        assert person.get(path, query).status_code < 500, (path, query)


LOOKUPS = ("exact", "isnull", "in", "range", "gt", "lte", "contains", "regex", "year")


def test_no_lookup_in_an_address_makes_a_list_fail(shop: Install, rf: RequestFactory) -> None:
    """Of no list that the admin has, by a field of each type that its rows have."""
    boss = User.objects.create_superuser("boss")
    fields = [
        (page, field)
        for model, page in admin.site._registry.items()
        for field in {type(field): field for field in model._meta.get_fields()}.values()
    ]
    for (page, field), lookup in itertools.product(fields, LOOKUPS):
        for odd in ("", "\x00", "9" * 40, "9" * 5_000, "1,2"):
            request = rf.get("/", {f"{field.name}__{lookup}": odd})
            request.user = boss
            try:
                with transaction.atomic():
                    page.get_changelist_instance(request)
            except IncorrectLookupParameters:
                continue
            except DisallowedModelAdminLookup:
                break  # with any text
            except Exception as error:
                error.add_note(f"{page}: {field.name}__{lookup}={odd[:12]!r}")
                raise


# --- at the login, on the way to ODP, and on the way to Redis -------------------------------------------------


def test_behind_a_proxy_guessing_passwords_locks_out_only_that_address(settings: Any) -> None:
    settings.AXES_FAILURE_LIMIT, settings.BEHIND_PROXY, settings.TRUSTED_PROXIES = 3, True, 1
    User.objects.create_user("boss", password="long enough for anyone", is_staff=True)

    def log_in(password: str, address: str) -> int:
        form = {"username": "boss", "password": password}
        return (
            Client()
            .post(reverse("admin:login"), form, REMOTE_ADDR="127.0.0.1", headers={"X-Forwarded-For": address})
            .status_code
        )

    for number in range(5):
        log_in("wrong", f"10.9.9.{number}, 203.0.113.66")  # the first entry is the guesser's own invention
    assert log_in("long enough for anyone", "203.0.113.66") == 429
    assert log_in("long enough for anyone", "203.0.113.99") == 302


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("http://api.zaius.com", False),
        ("https://api.zaius.com", True),
        ("http://127.0.0.1:9", True),
        ("http://localhost", True),
        ("http://staging.example", False),
        ("https://staging.example", True),
    ],
)
def test_the_key_goes_over_http_to_this_machine_alone(host: str, allowed: bool, settings: Any) -> None:
    settings.ALLOWED_ODP_HOSTS = ["staging.example"]
    settings.PUBLIC_URL = "http://127.0.0.1:8000"
    assert (odp_hosts.problem_of(host) == "") is allowed


def test_behind_a_proxy_a_forgotten_public_url_is_an_error(settings: Any) -> None:
    from audiences import checks

    settings.BEHIND_PROXY, settings.PUBLIC_URL = True, "http://127.0.0.1:8000"
    assert [found.id for found in checks.public_url_is_set_behind_a_proxy()] == ["audiences.E013"]
    settings.PUBLIC_URL = "https://sync.example.com"
    assert checks.public_url_is_set_behind_a_proxy() == []


def test_the_process_role_can_append_to_who_did_what_and_not_rewrite_it() -> None:
    from audiences.operations import db_role

    assert db_role._rights("admin", LogEntry._meta.db_table) == "SELECT, INSERT"
    assert "DELETE" not in db_role._rights("audiences", "audiences_event")
    assert the_settings.CELERY_BROKER_URL.startswith("redis://")
