"""Each line of the threat model in docs/security.md that isn't tested elsewhere."""

import os
import re
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import DatabaseError, ProgrammingError, connection, transaction
from django.test import Client, RequestFactory
from django.urls import reverse
from django.utils.timezone import now

from audiences import checks, lytics_account, odp_hosts
from audiences.admin import verbs
from audiences.agreement import audits
from audiences.delivery import drafts
from audiences.insight import search_index, trials
from audiences.models import Audience, Install, Token, Trouble, Worker
from audiences.operations import db_role, forgetting, installs, pruning, skips, twins
from audiences.receiving import ingest
from local.processes import Fleet, free_port
from local.stack import Memory, Stack
from lytics_sync.security import POLICY
from tests.delivering import a_log, assert_all_is_well, drain_all, enter, make_audience, make_install, sandbox
from tests.lytics_api import Lytics

PASSWORD = "long enough for anyone"

# --- Where an install may send to -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "http://169.254.169.254",
        "https://10.0.0.7:6379",
        "http://localhost:5432",
        "https://api.zaius.com.evil.example",
        "https://evil.example",
    ],
)
def test_a_public_service_sends_to_no_host_but_odps_own(host: str, settings: Any) -> None:
    settings.PUBLIC_URL = "https://sync.example.com"
    assert "ALLOWED_ODP_HOSTS" in odp_hosts.problem_of(host)


@pytest.mark.parametrize(
    "name",
    [
        "169.254.169.254",
        "2852039166",
        "0xa9fea9fe",
        "169.254.1",
        "[fe80::1]",
        "[::ffff:169.254.169.254]",
        "metadata.google.internal",
        "metadata.google.internal.",
    ],
)
def test_no_service_asks_a_cloud_for_its_credentials(name: str, settings: Any) -> None:
    """Also on a developer's machine, which may be in a cloud."""
    settings.PUBLIC_URL = "http://127.0.0.1:8000"
    assert "ALLOWED_ODP_HOSTS" in odp_hosts.problem_of(f"https://{name}")
    settings.ALLOWED_ODP_HOSTS = [name.strip("[]")]
    assert odp_hosts.problem_of(f"https://{name}") == ""


@pytest.mark.parametrize("host", ["", "https://api.zaius.com", "https://api.eu1.odp.optimizely.com/"])
def test_odps_own_hosts_are_allowed(host: str, settings: Any) -> None:
    settings.PUBLIC_URL = "https://sync.example.com"
    assert odp_hosts.problem_of(host) == ""


def test_a_setting_allows_another_odp_host(settings: Any) -> None:
    settings.PUBLIC_URL = "https://sync.example.com"
    settings.ALLOWED_ODP_HOSTS = ["sandbox"]
    assert odp_hosts.problem_of("http://sandbox:8090") == ""


@pytest.mark.parametrize(
    "host",
    [
        "https://api.zaius.com@evil.example",
        "https://user:word@api.zaius.com",
        "file:///etc/passwd",
        "https://api.zaius.com/v3",
        "https://api.zaius.com?x=",
        "https://api.zaius.com?",
        "https://api.zaius.com#",
        "https://api.zaius.com:port",
        "https://[::1",
        "//api.zaius.com",
    ],
)
def test_a_host_is_scheme_name_and_port(host: str) -> None:
    assert odp_hosts.problem_of(host) != ""


@pytest.mark.django_db
def test_an_install_with_such_a_host_is_not_made(settings: Any) -> None:
    settings.PUBLIC_URL = "https://sync.example.com"
    with pytest.raises(ValidationError, match="none of ODP's own hosts"):
        installs.create(Install(name="Shop", odp_api_key="key", odp_host="http://169.254.169.254"))
    with pytest.raises(CommandError, match="odp_host"):
        call_command("create_install", "Shop", "--odp-api-key", "key", "--odp-host", "http://169.254.169.254")
    assert not Install.objects.exists()


@pytest.mark.django_db
def test_the_checks_find_an_install_whose_host_is_no_longer_allowed(settings: Any) -> None:
    make_install(odp_host="https://10.0.0.7")
    assert checks.hosts_allowed(databases=["default"]) == []
    settings.PUBLIC_URL = "https://sync.example.com"
    assert [message.id for message in checks.hosts_allowed(databases=["default"])] == ["audiences.E008"]


@pytest.mark.django_db
@pytest.mark.parametrize("key", ["key\r\nX-Other: 1", "two words", "schlüssel", "key\x00"])
def test_a_key_can_not_end_its_header_line(key: str) -> None:
    with pytest.raises(ValidationError):
        installs.create(Install(name="Shop", odp_api_key=key))


# --- Pages and logins -----------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("url", ["/admin/login/", "/health/live", "/webhooks/lytics/nobody"])
def test_every_response_has_the_content_security_policy(url: str) -> None:
    answer = Client().get(url)
    assert answer.headers["Content-Security-Policy"] == POLICY
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "frame-ancestors 'none'" in POLICY
    # The older header that says the same.
    assert answer.headers["X-Frame-Options"] == "DENY"


def test_no_page_of_ours_has_a_script_in_it() -> None:
    """The policy forbids them, so one would do nothing."""
    for template in Path("audiences/templates").rglob("*.html"):
        text = template.read_text(encoding="utf-8")
        assert not re.search(r"<script(?![^>]*(\bsrc=|application/json))", text), template
        assert not re.search(r"\son\w+=", text), template


@pytest.fixture
def person(db: None) -> User:
    return User.objects.create_user("kim", password=PASSWORD, is_staff=True)


def log_in(client: Client, password: str, *, address: str = "192.0.2.1", name: str = "kim") -> Any:
    form = {"username": name, "password": password}
    return client.post(reverse("admin:login"), form, REMOTE_ADDR=address)


def test_guessing_passwords_is_stopped(person: User, settings: Any) -> None:
    settings.AXES_FAILURE_LIMIT = 3
    for _ in range(2):
        assert log_in(Client(), "wrong").status_code == 200
    stopped = log_in(Client(), "wrong")
    assert stopped.status_code == 429
    assert "Too many wrong passwords" in stopped.content.decode()
    assert log_in(Client(), PASSWORD).status_code == 429, "not even with the right one"


def test_guessing_locks_out_no_other_account(person: User, settings: Any) -> None:
    settings.AXES_FAILURE_LIMIT = 3
    User.objects.create_user("ada", password=PASSWORD, is_staff=True)
    for _ in range(4):
        log_in(Client(), "wrong")
    assert log_in(Client(), PASSWORD, address="192.0.2.2").status_code == 302, "the same person from elsewhere"
    assert log_in(Client(), PASSWORD, name="ada").status_code == 302, "somebody else from there"


def test_a_few_slips_are_forgotten_with_the_right_password(person: User, settings: Any) -> None:
    settings.AXES_FAILURE_LIMIT = 3
    for _ in range(4):
        log_in(Client(), "wrong")
        log_in(Client(), "wrong")
        if log_in(Client(), PASSWORD).status_code != 302:
            break
    else:
        return
    raise AssertionError("locked out by slips that were made good")


def test_guessing_over_many_accounts_is_stopped_at_all_of_them_for_that_address_only(
    person: User, settings: Any
) -> None:
    settings.LOGIN_ADDRESS_FAILURE_LIMIT = 5
    answers = [log_in(Client(), "wrong", name=f"somebody-{number}").status_code for number in range(6)]
    assert answers == [200, 200, 200, 200, 429, 429]
    stopped = log_in(Client(), PASSWORD)
    assert stopped.status_code == 429
    assert "15 minutes" in stopped.content.decode()
    assert timedelta(minutes=15) == settings.AXES_COOLOFF_TIME
    assert log_in(Client(), PASSWORD, address="192.0.2.2").status_code == 302


def test_an_account_of_ones_own_buys_no_further_guesses(person: User, settings: Any) -> None:
    settings.LOGIN_ADDRESS_FAILURE_LIMIT = 5
    for number in range(5):
        assert log_in(Client(), PASSWORD).status_code == 302
        log_in(Client(), "wrong", name=f"somebody-{number}")
    assert log_in(Client(), PASSWORD).status_code == 429


def test_accounts_are_guessed_at_from_one_ipv6_network_as_from_one_address(person: User, settings: Any) -> None:
    settings.AXES_FAILURE_LIMIT, settings.LOGIN_ADDRESS_FAILURE_LIMIT = 3, 5
    for number in range(3):
        log_in(Client(), "wrong", address=f"2001:db8::{number}:1")
    assert log_in(Client(), PASSWORD, address="2001:db8::9:9").status_code == 429
    for number in range(2):
        log_in(Client(), "wrong", address=f"2001:db8::{number}:2", name=f"somebody-{number}")
    assert log_in(Client(), "wrong", address="2001:db8::9:9", name="ada").status_code == 429
    assert log_in(Client(), PASSWORD, address="2001:db8:0:1::9").status_code == 302


@pytest.mark.parametrize(("limit", "address"), [(0, "192.0.2.1"), (5, "")])
def test_no_address_limit_where_none_is_set_or_the_address_is_unknown(
    person: User, settings: Any, limit: int, address: str
) -> None:
    settings.LOGIN_ADDRESS_FAILURE_LIMIT = limit
    for number in range(8):
        log_in(Client(), "wrong", address=address, name=f"somebody-{number}")
    assert log_in(Client(), PASSWORD, address=address).status_code == 302


@pytest.mark.django_db
def test_cookies_are_for_https_and_for_no_script(settings: Any, person: User) -> None:
    settings.SESSION_COOKIE_SECURE = settings.CSRF_COOKIE_SECURE = True
    cookies = log_in(Client(), PASSWORD).cookies
    assert cookies["sessionid"]["secure"]
    assert cookies["sessionid"]["httponly"]
    assert cookies["sessionid"]["samesite"] == "Lax"
    assert cookies["csrftoken"]["secure"]


# --- Secrets stay where they are ------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_no_secret_is_in_a_process_list_or_a_log(tmp_path: Path) -> None:
    """Of a whole stack, while calls come with right and wrong tokens and ODP can't be reached."""
    made = Install(name="Shop", odp_api_key="public-part.private-part-of-the-key", odp_host="http://127.0.0.1:9")
    token = installs.create(made)
    fleet, port = _stack(tmp_path)
    try:
        for header in (installs.authorization(token), "Bearer lysync_wrong-token-of-a-stranger"):
            _call(port, made, header)
        _wait_for(lambda: "audience on hold" in _logs(tmp_path))
        commands = _commands(fleet)
    finally:
        fleet.stop()
    secrets = {
        "token": token.secret,
        "ODP key": "private-part-of-the-key",
        "stranger's token": "wrong-token-of-a-stranger",
        "SECRET_KEY": os.environ["SECRET_KEY"],
        "FIELD_ENCRYPTION_KEYS": os.environ["FIELD_ENCRYPTION_KEYS"],
        "database password": str(connection.settings_dict["PASSWORD"]),
    }
    logs = _logs(tmp_path)
    assert len(commands) >= 3
    for name, secret in secrets.items():
        assert secret, name
        assert secret not in logs, f"{name} in a log"
        assert secret not in "\n".join(commands), f"{name} in a process list"


def _stack(folder: Path) -> tuple[Fleet, int]:
    port = free_port()
    url = os.environ["DATABASE_URL"].rsplit("/", 1)[0] + f"/{connection.settings_dict['NAME']}"
    fleet = Fleet(folder=folder, env={**os.environ, "DATABASE_URL": url, "PORT": str(port)}, tell=print)
    stack = Stack(folder=folder, port=port, host="127.0.0.1", memory=Memory(file=folder / "local.env", values={}))
    fleet.start(stack.web(), *stack.workers(), stack.beat())
    return fleet, port


def _call(port: int, install: Install, header: str) -> None:
    from http.client import HTTPConnection

    body = (
        '[{"data": {"_id": "p-1", "segment_events": [{"id": "a1", "slug": "vip", "event": "enter",'
        ' "enter": "2026-02-01T00:00:00Z"}]}, "meta": {"object": "user"}}]'
    )
    caller = HTTPConnection("127.0.0.1", port, timeout=30)
    caller.request("POST", f"/webhooks/lytics/{install.public_id}", body, {"Authorization": header})
    caller.getresponse().read()
    caller.close()


def _logs(folder: Path) -> str:
    return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in (folder / "log").iterdir())


def _commands(fleet: Fleet) -> list[str]:
    children = [child for group in fleet.groups for child in group if child.process]
    files = [Path(f"/proc/{child.process.pid}/cmdline") for child in children if child.process]
    return [file.read_text(encoding="utf-8").replace("\0", " ") for file in files if file.exists()]


def _wait_for(holds: Any) -> None:
    from tests.threads import eventually

    eventually(holds)


@pytest.mark.django_db
def test_an_error_page_reveals_nothing(settings: Any, monkeypatch: pytest.MonkeyPatch, person: User) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("the-odp-key in a message")

    monkeypatch.setattr("audiences.front.page.front", fail)
    person.is_superuser = True
    person.save()
    client = Client(raise_request_exception=False)
    client.force_login(person)
    answer = client.get(reverse("admin:index"))
    assert answer.status_code == 500
    assert "the-odp-key" not in answer.content.decode()


def test_the_key_can_be_given_without_a_process_list_showing_it(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", StringIO("public.private\n"))
    call_command("create_install", "Shop", "--odp-api-key", "-", stdout=StringIO())
    assert Install.objects.get().odp_api_key == "public.private"


# --- The role in the database ---------------------------------------------------------------------------------


@pytest.fixture
def bridge(transactional_db: None) -> Iterator[str]:
    """A role with the rights of a process; each test takes it on with SET ROLE."""
    name = "lytics_sync_process"
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE ROLE {name}")
        call_command("grant_role", name, stdout=StringIO())
        yield name
        cursor.execute("RESET ROLE")
        cursor.execute(f"DROP OWNED BY {name}")
        cursor.execute(f"DROP ROLE {name}")


def test_the_role_can_do_all_that_the_processes_do(bridge: str) -> None:
    with sandbox() as odp:
        shop = make_install(odp)
        with connection.cursor() as cursor:
            cursor.execute(f"SET ROLE {bridge}")
        gold = make_audience(shop, provisioned=False)
        enter(gold, "anna", "ben")
        ingest.receive(shop, b"not json")
        drain_all(shop)
        assert odp.members("lytics_gold") == ["anna", "ben"]
        assert_all_is_well(gold)
        Worker.objects.all().delete()
        Install.objects.update(enabled=False)
        assert skips.skip(shop.pk, by="kim", reason="restored").total == 0


def test_the_role_gets_exactly_its_rights_also_if_it_had_others(bridge: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"GRANT ALL ON audiences_event, auth_permission, django_migrations TO {bridge}")
        cursor.execute(f"GRANT CREATE ON SCHEMA public TO {bridge}")
        db_role.grant(bridge)
        cursor.execute("SELECT has_schema_privilege(%s, 'public', 'CREATE')", [bridge])
        assert cursor.fetchone() == (False,)
        cursor.execute(
            "SELECT table_name, string_agg(privilege_type, ' ' ORDER BY privilege_type)"
            " FROM information_schema.role_table_grants WHERE grantee = %s GROUP BY 1",
            [bridge],
        )
        rights = dict(cursor.fetchall())
        assert rights["audiences_event"] == "INSERT SELECT"
        assert rights["auth_permission"] == rights["django_content_type"] == rights["django_migrations"] == "SELECT"
        assert rights["auth_user_groups"] == "DELETE INSERT SELECT UPDATE"
        cursor.execute(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
            " AND NOT has_function_privilege(%s, oid, 'EXECUTE') ORDER BY 1",
            [bridge],
        )
        assert cursor.fetchall() == [("make_part",), ("partition_log",)]


def test_the_role_can_look_audit_and_forget(bridge: str, lytics: Lytics, settings: Any) -> None:
    """These delete rows: old probes and reports, scanned members, one customer."""
    settings.AUDIT_SETTLE_SECONDS = 0
    with sandbox() as odp:
        shop = make_install(odp)
        drafts.note_key(shop.pk, problem="")
        with connection.cursor() as cursor:
            cursor.execute(f"SET ROLE {bridge}")
        lytics_account.set_token(shop, "api-token")
        gold = make_audience(shop, provisioned=False)
        enter(gold, "anna", "ben")
        drain_all(shop)
        assert twins.look(shop.pk) == 1
        twins.forget(gold)
        lytics.members = ["anna"]
        for _ in range(2):
            asked = audits.ask(Audience.objects.get(pk=gold.pk), mode="full", by="kim")
            assert asked is not None
            assert next(audits.finish([asked])).differing == 1
        asked_to_forget = forgetting.ask(shop, "anna", tell_odp=False, by="dpo")
        assert asked_to_forget is not None
        assert forgetting.advance(asked_to_forget)
        trials.drop_old_probes(shop, keep=0)
        lytics_account.set_token(shop, "")
        assert_all_is_well(gold)


def test_the_role_makes_the_log_quick_to_search(bridge: str) -> None:
    a_log(make_audience(make_install()), 20_000)
    with connection.cursor() as cursor:
        cursor.execute(f"SET ROLE {bridge}")
    assert search_index.summarise() > 0
    assert search_index.summarise() == 0


def test_a_role_without_the_right_gets_the_command_to_run(bridge: str, caplog: pytest.LogCaptureFixture) -> None:
    """A role with the rights of an older version."""
    with connection.cursor() as cursor:
        cursor.execute(f"REVOKE EXECUTE ON FUNCTION summarise_events FROM {bridge}")
        cursor.execute(f"SET ROLE {bridge}")
    with transaction.atomic():
        assert search_index.summarise() == 0
    assert "grant_role" in caplog.text


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM audiences_event",
        "UPDATE audiences_event SET identifier = 'x'",
        "TRUNCATE audiences_event",
        "DELETE FROM audiences_event_1",
        "INSERT INTO audiences_event_1 SELECT * FROM audiences_event",
        "DROP TABLE audiences_event_1",
        "SELECT partition_log()",
        "DELETE FROM audiences_logpart",
        "DELETE FROM django_admin_log",
        "UPDATE django_admin_log SET change_message = 'x'",
        "SELECT brin_summarize_new_values('audiences_event_1_identifier_idx')",
        "DELETE FROM audiences_membership",
        "DELETE FROM audiences_receipt",
        "DELETE FROM audiences_parked",
        "DELETE FROM audiences_audience",
        "ALTER TABLE audiences_event DROP COLUMN kind",
        "CREATE TABLE mine (id int)",
        "CREATE TEMPORARY TABLE mine (id int)",
        "INSERT INTO django_migrations (app, name, applied) VALUES ('x', 'y', now())",
    ],
)
def test_the_role_can_delete_no_history(bridge: str, statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET ROLE {bridge}")
        with pytest.raises(ProgrammingError, match=r"permission denied|must be owner"):
            cursor.execute(statement)


def test_the_role_deletes_old_history_by_a_function_and_nothing_recent(bridge: str) -> None:
    at = now()
    usual = {"kind": "blocked", "what": "w", "tone": "bad", "path": "/", "since_at": at, "last_seen_at": at}
    old, recent, lasting = (Trouble.objects.create(key=key, **usual) for key in ("old", "recent", "lasting"))
    Trouble.objects.filter(pk=old.pk).update(resolved_at=at - timedelta(days=200))
    Trouble.objects.filter(pk=recent.pk).update(resolved_at=at)
    with connection.cursor() as cursor:
        cursor.execute(f"SET ROLE {bridge}")
        assert pruning.prune(pause=lambda seconds: None) == 1
        cursor.execute("SELECT prune_rows('troubles', %s)", [[recent.pk, lasting.pk]])
        assert cursor.fetchone() == (0,)
        cursor.execute("SELECT pruned FROM prune_events(1, 0, 9, now() - interval '2 days')")
        assert cursor.fetchone() == (0,)
        with pytest.raises(DatabaseError, match="case not found"), transaction.atomic():
            cursor.execute("SELECT prune_rows('events', '{}')")
    assert set(Trouble.objects.all()) == {recent, lasting}


@pytest.mark.parametrize("owns_the_database", [True, False])
def test_a_caller_who_can_not_revoke_temporary_is_told_who_can(bridge: str, owns_the_database: bool) -> None:
    """The tables may have another owner than the database."""
    database = connection.ops.quote_name(connection.settings_dict["NAME"])
    out, said = StringIO(), StringIO()
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user")
        (superuser,) = cursor.fetchone() or ("",)
        cursor.execute(f"GRANT TEMPORARY ON DATABASE {database} TO PUBLIC")
        cursor.execute("CREATE ROLE tables_owner")
        try:
            for table in connection.introspection.table_names():
                cursor.execute(f'ALTER TABLE "{table}" OWNER TO tables_owner')
            cursor.execute("ALTER SCHEMA public OWNER TO tables_owner")
            for function in db_role.FUNCTIONS:
                cursor.execute(f"ALTER FUNCTION {function} OWNER TO tables_owner")
            if owns_the_database:
                cursor.execute(f"ALTER DATABASE {database} OWNER TO tables_owner")
            cursor.execute("SET ROLE tables_owner")
            call_command("grant_role", bridge, stdout=out, stderr=said)
        finally:
            cursor.execute("RESET ROLE")
            cursor.execute(f"ALTER DATABASE {database} OWNER TO {connection.ops.quote_name(superuser)}")
            cursor.execute(f"REASSIGN OWNED BY tables_owner TO {connection.ops.quote_name(superuser)}")
            cursor.execute("DROP OWNED BY tables_owner")
            cursor.execute("DROP ROLE tables_owner")
            cursor.execute(f"GRANT TEMPORARY ON DATABASE {database} TO PUBLIC")
    assert ("REVOKE TEMPORARY" in said.getvalue()) == (not owns_the_database)
    assert "audiences_event" in out.getvalue()


@pytest.mark.django_db
def test_a_missing_role_is_reported() -> None:
    with pytest.raises(CommandError, match="does not exist"):
        call_command("grant_role", "nobody_of_that_name")


def test_every_table_has_its_rights(db: None) -> None:
    known = {table for _, table in db_role._tables()}
    assert known >= db_role.DELETABLE_TABLES | db_role.APPEND_ONLY | db_role.READ_ONLY - {"django_migrations"}
    assert Token._meta.db_table in known


@pytest.mark.parametrize("place", ["https://evil.example/", "//evil.example/", "javascript:alert(1)", "/admin/live/"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_button_leads_back_to_no_other_site(place: str, method: str) -> None:
    request = getattr(RequestFactory(), method.lower())("/admin/", {"next": place})
    assert verbs.way_back(request, "/admin/own/") == ("/admin/live/" if place == "/admin/live/" else "/admin/own/")
