"""The docs are true: links work, and the named commands, buttons, settings and files exist."""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from django.apps import apps
from django.core.management import get_commands
from django.db import OperationalError
from django.http.response import HttpResponseBase
from django.test import Client
from opentelemetry.sdk import environment_variables
from pytest_django.fixtures import Settings

from audiences.delivery.leases import REJECTED_BY_ODP
from audiences.models import Install
from audiences.operations import installs
from audiences.receiving import backlog, ingest
from lytics.reasons import HINTS
from lytics_sync import env
from tests.messages import body, message

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("[a-z]*/README.md")])
PACKAGES = ("audiences", "workers", "lytics", "odp", "outgoing", "lytics_sync")
OPERATING = ROOT / "docs" / "operating.md"
WEBHOOK = ROOT / "docs" / "webhook.md"
PROMISES = ROOT / "docs" / "promises.md"
DECISIONS = ROOT / "docs" / "decisions"
(DEPENDENCIES,) = DECISIONS.glob("*-dependencies.md")
Answer = HttpResponseBase
# At the start, or after the variables that people put in front: SAMPLE=1 make run.
MAKE = re.compile(r"^(?:\w+=\S+ )*make ([a-z-]+)")


def on_pages(wrong_on: Callable[[Path, str], Iterable[str]], pages: list[Path] = PAGES) -> dict[str, list[str]]:
    """What is wrong on each page, given its path and text; pages without anything wrong are left out."""
    found = {page: sorted(wrong_on(page, page.read_text(encoding="utf-8"))) for page in pages}
    return {str(page.relative_to(ROOT)): wrong for page, wrong in found.items() if wrong}


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def code(text: str) -> list[str]:
    """What a page shows as code: each line of a block, and each piece between backticks."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [*"\n".join(blocks).splitlines(), *re.findall(r"`([^`\n]+)`", without_blocks(text))]


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub makes links of them."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def column(page: Path, number: int) -> list[str]:
    """The cells of one column, of all tables of a page, without their headings."""
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    rules = [place for place, row in enumerate(rows) if set(row) <= set("|-: ")]
    headings = {place - 1 for place in rules}
    return [row.split("|")[number] for place, row in enumerate(rows) if place not in {*rules, *headings}]


def sources(*packages: str) -> str:
    files = [file for package in packages for file in sorted((ROOT / package).rglob("*.py"))]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def test_every_link_leads_somewhere() -> None:
    def lost(page: Path, text: str) -> Iterator[str]:
        for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(text)):
            if "://" in link or link.startswith("mailto:"):
                continue
            file, _, anchor = link.partition("#")
            target = page.parent / file if file else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                yield link

    assert on_pages(lost) == {}


def test_every_make_target_exists() -> None:
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert phony
    targets = set(phony[1].split())
    assert on_pages(lambda _, text: {m[1] for piece in code(text) if (m := MAKE.search(piece))} - targets) == {}


def test_every_management_command_exists() -> None:
    commands = set(get_commands())
    assert on_pages(lambda _, text: set(re.findall(r"manage\.py ([a-z_]+)", text)) - commands) == {}


def test_every_file_named_in_code_exists() -> None:
    places = "|".join((*PACKAGES, "local", "benchmarks", "tests", "docs", "sandbox", r"\.ci", r"\.github"))
    file = re.compile(rf"(?:{places})/[\w/.-]+")
    assert (
        on_pages(lambda _, text: [one for one in code(text) if file.fullmatch(one) and not (ROOT / one).exists()]) == {}
    )


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/adding/*.md")), ids=lambda page: str(page.name))
def test_every_file_to_touch_when_something_is_added_exists(page: Path) -> None:
    """The files of the first column, relative to the repository. ``<name>`` is a placeholder for a new file."""
    named = [piece for cell in column(page, 1) for piece in re.findall(r"`([^`]+)`", cell) if "<" not in piece]
    assert len(named) > 4
    assert [file for file in named if not (ROOT / file).exists()] == []


def test_every_page_about_adding_fits_on_a_screen_and_is_in_the_index_and_in_contributing() -> None:
    pages = sorted(ROOT.glob("docs/adding/*.md"))
    assert [page.name for page in pages if len(page.read_text(encoding="utf-8").splitlines()) > 60] == []
    index, contributing = (ROOT / "docs" / "README.md"), (ROOT / "CONTRIBUTING.md")
    for file, link in ((index, "adding/{}"), (contributing, "docs/adding/{}")):
        text = file.read_text(encoding="utf-8")
        assert [page.name for page in pages if f"]({link.format(page.name)})" not in text] == []


def test_every_setting_named_in_code_can_be_set() -> None:
    """Or it is a constant of ours: a page may send its reader to one. The changelog names former settings too.

    Those of the OpenTelemetry SDK begin with OTEL_.
    """
    can_be_set = re.findall(r"^(?:# )?([A-Z_]+)=", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE)
    constants = re.findall(r"^([A-Z_]+) = ", sources(*PACKAGES), re.MULTILINE)
    known = {*can_be_set, *constants, *vars(environment_variables)}

    def unknown(page: Path, text: str) -> set[str]:
        former = set(env.RENAMED) if page.name == "CHANGELOG.md" else set()
        return set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", text)) - known - former

    assert on_pages(unknown) == {}


def test_every_test_named_on_a_page_exists() -> None:
    tests = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py"))
    existing = set(re.findall(r"def (test_\w+)", tests))
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8"))}
    assert len(named) > 15
    assert named - existing == set()


def defines(files: list[Path], name: str) -> bool:
    """Whether one of these modules defines or imports the name; a package has its modules, too."""
    defined = re.compile(
        rf"\b(?:def|class) {name}\b|^ *(?:\w+, )*{name}\b[^=\n]*=|^(?:from .* )?import .*\b{name}\b", re.M
    )
    places = [place.stem for file in files if file.name == "__init__.py" for place in file.parent.iterdir()]
    return name in places or any(defined.search(file.read_text(encoding="utf-8")) for file in files)


# What looks like a name of a module and isn't: ids of system checks, a span, a placeholder.
OTHER_NAMES = re.compile(r"\w+\.[EW]\d{3}|lytics_sync\.delivery|settings\.NAME")


def test_every_name_given_with_its_module_exists() -> None:
    """``drain.turn``, on pages, in comments and in docstrings."""
    modules: dict[str, list[Path]] = {}
    for file in (file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        modules.setdefault(file.parent.name if file.name == "__init__.py" else file.stem, []).append(file)
    texts = [page.read_text(encoding="utf-8") for page in PAGES if page.name != "CHANGELOG.md"]
    named = {
        (module, name)
        for text in (*texts, sources(*PACKAGES))
        for module, name in re.findall(r"(?<!`)`{1,2}(\w+)\.(\w+)(?:\(\))?`{1,2}(?!`)", text)
        if module in modules
        and name not in {"py", "md", "sql", "html"}
        and not OTHER_NAMES.fullmatch(f"{module}.{name}")
    }
    assert len(named) > 60
    assert [f"{module}.{name}" for module, name in sorted(named) if not defines(modules[module], name)] == []


def test_every_table_is_in_the_glossary() -> None:
    """The tables of the app, without those of the admin and Celery."""
    named = set(re.findall(r"`models\.(\w+)`", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")))
    assert {model.__name__ for model in apps.get_app_config("audiences").get_models()} == named


# --- responses to Lytics --------------------------------------------------------------------------------------


def answers_on_the_page() -> dict[str, str]:
    """The first and the second column of the table."""
    table = WEBHOOK.read_text(encoding="utf-8").partition("## Responses to Lytics")[2].partition("\n## ")[0]
    rows = [row.split("|")[1:3] for row in table.splitlines() if row.startswith("|")][2:]
    return {call.strip(): answer.strip() for call, answer in rows}


def call(
    install: Install,
    content: bytes = b"[]",
    *,
    method: str = "POST",
    path: str = "",
    token: bool = True,
    host: str = "testserver",
) -> Answer:
    header = installs.authorization(install.tokens.get()) if token else "Bearer lysync_nobodys"
    path = path or f"/webhooks/lytics/{install.public_id}"
    headers = {"Authorization": header, "Host": host}
    return Client().generic(method, path, content, "application/json", headers=headers)


def over_the_body_limit(install: Install, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Answer:
    settings.WEBHOOK_BODY_LIMIT = 1
    return call(install)


def over_the_high_water_mark(install: Install, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Answer:
    settings.BACKLOG_HIGH_WATER = -1
    return call(install)


def without_a_database(install: Install, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Answer:
    def down(*_: object, **__: object) -> None:
        raise OperationalError

    monkeypatch.setattr(ingest, "receive", down)
    return call(install)


def switched_off(install: Install, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Answer:
    Install.objects.update(enabled=False)
    return call(install)


def with_many_wrong_tokens(install: Install, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Answer:
    settings.BAD_TOKENS_PER_MINUTE = 1
    call(install, token=False)
    assert call(install).status_code == 200
    return call(install, token=False)


# The words by which the page names a call, and how to make it.
CALLS: dict[str, Callable[[Install, Settings, pytest.MonkeyPatch], Answer]] = {
    "any mix of good and parked items": lambda install, *_: call(install, body(message(), "no message")),
    "an empty array": lambda install, *_: call(install, b"[]"),
    "a repeated call": lambda install, *_: call(install, body(message(), message())),
    "not JSON": lambda install, *_: call(install, b"<html>"),
    "not the layout": lambda install, *_: call(install, b'{"user": 1}'),
    "bad or missing token": lambda install, *_: call(install, token=False),
    "unknown install": lambda install, *_: call(install, path="/webhooks/lytics/0000"),
    "to any other URL": lambda install, *_: call(install, path="/webhook/other"),
    "from one address": with_many_wrong_tokens,
    "GET": lambda install, *_: call(install, method="GET"),
    "DELETE": lambda install, *_: call(install, method="DELETE"),
    "other methods": lambda install, *_: call(install, method="OPTIONS"),
    "over the body limit": over_the_body_limit,
    "database down": without_a_database,
    "over the high-water mark": over_the_high_water_mark,
    "switched off": switched_off,
    "a host that isn't in `ALLOWED_HOSTS`": lambda install, *_: call(install, host="elsewhere.example"),
}


def test_every_response_on_the_page_is_tried() -> None:
    rows = answers_on_the_page()
    assert len(rows) == 7
    assert [row for row in rows if not any(words in row for words in CALLS)] == []


@pytest.mark.parametrize("words", CALLS)
@pytest.mark.django_db
def test_lytics_is_answered_as_the_page_says(
    words: str, install: Install, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "FRESH_SECONDS", 0.0)
    (said,) = [answer for row, answer in answers_on_the_page().items() if words in row]
    answer = CALLS[words](install, settings, monkeypatch)
    assert [str(answer.status_code)] == re.findall(r"`(\d{3})`", said)
    assert ("Retry-After" in answer.headers) == ("`Retry-After`" in said)


# --- The operator's pages -------------------------------------------------------------------------------------


def test_every_button_and_page_an_operator_is_sent_to_exists() -> None:
    """They are set in single asterisks there; nothing else with a capital letter is."""
    named = set(re.findall(r"(?<!\*)\*([A-Z][\w ]*)\*(?!\*)", OPERATING.read_text(encoding="utf-8")))
    states = {"Unknown", "Open"}
    admin = sources("audiences/admin", "audiences/front")
    written = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "audiences/templates").rglob("*.html"))
    assert len(named) > 8
    assert [name for name in sorted(named - states) if f'"{name}"' not in admin and f">{name}<" not in written] == []


def test_every_log_line_worth_an_alert_is_written() -> None:
    table = OPERATING.read_text(encoding="utf-8").partition("## Log lines")[2].partition("\n## ")[0]
    rows = [row.split("|")[1:3] for row in table.splitlines() if row.startswith("| `")]
    lines = [(line, level.strip()) for names, level in rows for line in re.findall(r"`([^`]+)`", names)]
    assert len(lines) > 8
    written = sources(*PACKAGES)
    ways = {"error": "error|exception", "warning": "warning"}
    lost = [line for line, level in lines if not re.search(rf'log\.(?:{ways[level]})\("{re.escape(line)}', written)]
    assert lost == []


def test_every_documented_setting_can_be_set() -> None:
    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", OPERATING.read_text(encoding="utf-8")))
    can_be_set = set(
        re.findall(r"^(?:# )?([A-Z_]+)=", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert named
    assert named - can_be_set == set()


def test_the_operators_page_lists_every_reason_and_no_other() -> None:
    table = OPERATING.read_text(encoding="utf-8").partition("### Parked")[2].partition("\n###")[0]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    named = {reason for row in rows for reason in re.findall(r"`(\w+)`", row)}
    assert named == {*HINTS, REJECTED_BY_ODP}


# --- dependencies ---------------------------------------------------------------------------------------------


REQUIREMENTS = ("requirements.txt", "requirements-tracing.txt", "requirements-dev.txt")


@pytest.mark.parametrize("file", REQUIREMENTS)
def test_every_dependency_is_pinned_and_has_a_row_with_its_reason(file: str) -> None:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line.strip() and not line.startswith(("#", "-r "))]
    pinned = [match for line in wanted if (match := re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])?==[\w.]+", line))]
    assert len(pinned) == len(wanted)
    rows = {cell.strip().strip("`") for cell in column(DEPENDENCIES, 1)}
    assert [match[1] for match in pinned if match[1] not in rows] == []


def test_no_reason_outlives_its_dependency() -> None:
    lists = "".join((ROOT / file).read_text(encoding="utf-8") for file in REQUIREMENTS)
    pinned = {*re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==", lists, re.MULTILINE)}
    assert {cell.strip().strip("`") for cell in column(DEPENDENCIES, 1)} - pinned == set()


def test_every_test_of_a_promise_exists() -> None:
    tests = re.findall(r"`(tests/\w+\.py)`", PROMISES.read_text(encoding="utf-8"))
    assert len(tests) > 20
    assert [test for test in tests if not (ROOT / test).exists()] == []


# --- decisions ------------------------------------------------------------------------------------------------


DECISION_PAGES = sorted(page for page in DECISIONS.glob("*.md") if page.name != "README.md")
HEAD = re.compile(
    r"# (\d{4}) (.+)\n\n\*\*Date:\*\* (\d{4}-\d\d-\d\d) · \*\*Status:\*\* (accepted|superseded by \d{4})\n"
)


def decision_rows() -> list[tuple[str, str]]:
    """The rows of the index, and the row that the head of each page asks for."""
    index = (DECISIONS / "README.md").read_text(encoding="utf-8")
    listed = [row for row in index.splitlines() if re.match(r"\| \d{4} ", row)]
    expected = []
    for page in DECISION_PAGES:
        head = HEAD.match(page.read_text(encoding="utf-8"))
        assert head, f"{page.name} does not begin with its number, title, date and status"
        number, title, date, status = head.groups()
        assert page.name.startswith(f"{number}-"), f"{page.name} says that its number is {number}"
        expected.append(f"| {number} | [{title}]({page.name}) | {date} | {status} |")
    return list(zip(listed, expected, strict=True))


def test_the_index_of_decisions_has_each_page_with_its_title_date_and_status() -> None:
    rows = decision_rows()
    assert len(rows) > 20
    assert [(listed, expected) for listed, expected in rows if listed != expected] == []


def test_decisions_are_numbered_without_gaps_in_the_order_of_their_dates() -> None:
    heads = [HEAD.match(page.read_text(encoding="utf-8")) for page in DECISION_PAGES]
    found = [(int(head[1]), head[3]) for head in heads if head]
    assert [number for number, _ in found] == list(range(1, len(DECISION_PAGES) + 1))
    assert [date for _, date in found] == sorted(date for _, date in found)


# --- what fits into an editor ---------------------------------------------------------------------------------


LINE_COLUMNS = 120
CELL_CHARACTERS = 120


# What a command writes behind these headings is not written by hand.
GENERATED = re.compile(r"^## (?:Measured|The last big run)$.*", re.MULTILINE | re.DOTALL)


def test_no_line_of_a_page_is_too_long_to_read() -> None:
    """A line of prose has at most 120 columns. A table cell has at most 120 characters, without addresses and code.

    A cell holds a fact; a paragraph goes below the table.
    """

    def too_long(_: Path, text: str) -> list[str]:
        lines = without_blocks(GENERATED.sub("", text)).splitlines()
        rows = [line for line in lines if line.startswith("|")]
        prose = [line for line in lines if not line.startswith(("|", "!["))]
        cells = [cell for row in rows for cell in re.sub(r"\]\([^)]*\)|`[^`]*`", "", row).split("|")]
        return [
            *(line for line in prose if len(line) > LINE_COLUMNS),
            *(cell for cell in cells if len(cell.strip()) > CELL_CHARACTERS),
        ]

    assert on_pages(too_long) == {}


def test_the_readme_is_short_and_every_page_is_in_the_index() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [page.name for page in (ROOT / "docs").glob("*.*") if page.suffix in {".md", ".yaml", ".ini"}]
    assert [name for name in sorted(pages) if name != "README.md" and f"]({name})" not in index] == []
