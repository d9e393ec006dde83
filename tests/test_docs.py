"""The pages say what is there: links lead somewhere, what people are told to run or press exists, and has its name."""

import re
from pathlib import Path

import pytest
from django.core.management import get_commands

from audiences.lanes import REFUSED_BY_ODP
from lytics.reasons import HINTS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("[a-z]*/README.md")])
PACKAGES = ("audiences", "workers", "lytics", "odp", "lytics_sync")
OPERATING = ROOT / "docs" / "operating.md"
DEPENDENCIES = ROOT / "docs" / "decisions" / "dependencies.md"
# At the start, or after the variables that people put in front: SAMPLE=1 make run.
MAKE = re.compile(r"^(?:\w+=\S+ )*make ([a-z-]+)")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


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


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page.read_text(encoding="utf-8"))):
        if "://" in link or link.startswith("mailto:"):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert lost == []


@every_page
def test_every_make_target_exists(page: Path) -> None:
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert phony
    named = {match[1] for piece in code(page.read_text(encoding="utf-8")) if (match := MAKE.search(piece))}
    assert named - set(phony[1].split()) == set()


@every_page
def test_every_management_command_exists(page: Path) -> None:
    named = set(re.findall(r"manage\.py ([a-z_]+)", page.read_text(encoding="utf-8")))
    assert named - set(get_commands()) == set()


@every_page
def test_every_file_named_in_code_exists(page: Path) -> None:
    places = "|".join((*PACKAGES, "tests", "docs", "sandbox"))
    named = [
        piece for piece in code(page.read_text(encoding="utf-8")) if re.fullmatch(rf"(?:{places})/[\w/.-]+", piece)
    ]
    assert [file for file in named if not (ROOT / file).exists()] == []


def test_every_attribute_named_in_the_glossary_exists() -> None:
    import audiences.ingest
    import audiences.lanes
    import audiences.models
    import audiences.operations
    import workers.drain

    modules = {
        "ingest": audiences.ingest,
        "lanes": audiences.lanes,
        "models": audiences.models,
        "operations": audiences.operations,
        "drain": workers.drain,
    }
    named = re.findall(r"`(\w+)\.(\w+)`", " ".join(column(ROOT / "docs" / "glossary.md", 3)))
    assert len(named) > 15
    assert [f"{module}.{name}" for module, name in named if not hasattr(modules[module], name)] == []


# --- what an operator is told ----------------------------------------------------------------------------------


def test_every_button_and_page_an_operator_is_sent_to_exists() -> None:
    """They stand between single asterisks there; nothing else with a capital letter does."""
    named = set(re.findall(r"(?<!\*)\*([A-Z][\w ]*)\*(?!\*)", OPERATING.read_text(encoding="utf-8")))
    states = {"Unknown", "Open"}
    admin = sources("audiences/admin")
    assert len(named) > 8
    assert [name for name in sorted(named - states) if f'"{name}"' not in admin] == []


def test_every_log_line_worth_an_alert_is_written() -> None:
    table = OPERATING.read_text(encoding="utf-8").partition("## Log lines")[2].partition("\n## ")[0]
    rows = [row.split("|")[1:3] for row in table.splitlines() if row.startswith("| `")]
    lines = [(line, level.strip()) for names, level in rows for line in re.findall(r"`([^`]+)`", names)]
    assert len(lines) > 8
    written = sources(*PACKAGES)
    ways = {"error": "error|exception", "warning": "warning"}
    lost = [line for line, level in lines if not re.search(rf'log\.(?:{ways[level]})\("{re.escape(line)}', written)]
    assert lost == []


def test_every_setting_an_operator_is_told_of_can_be_set() -> None:
    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", OPERATING.read_text(encoding="utf-8")))
    can_be_set = set(
        re.findall(r"^(?:# )?([A-Z_]+)=", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert named
    assert named - can_be_set == set()


def test_every_reason_an_operator_is_told_of_can_be_met() -> None:
    table = OPERATING.read_text(encoding="utf-8").partition("### Parked")[2].partition("\n###")[0]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    named = {reason for row in rows for reason in re.findall(r"`(\w+)`", row)}
    assert named
    assert named - {*HINTS, REFUSED_BY_ODP} == set()


# --- dependencies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_every_dependency_is_pinned_and_has_a_row_with_its_reason(file: str) -> None:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line.strip() and not line.startswith(("#", "-r "))]
    pinned = [match for line in wanted if (match := re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])?==[\w.]+", line))]
    assert len(pinned) == len(wanted)
    rows = {cell.strip().strip("`") for cell in column(DEPENDENCIES, 1)}
    assert [match[1] for match in pinned if match[1] not in rows] == []


def test_no_reason_outlives_its_dependency() -> None:
    lists = "".join((ROOT / file).read_text(encoding="utf-8") for file in ("requirements.txt", "requirements-dev.txt"))
    pinned = set(re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==", lists, re.MULTILINE))
    assert {cell.strip().strip("`") for cell in column(DEPENDENCIES, 1)} - pinned == set()


@pytest.mark.parametrize("test", re.findall(r"`(tests/\w+\.py)`", (ROOT / "README.md").read_text(encoding="utf-8")))
def test_every_proof_named_in_the_readme_exists(test: str) -> None:
    assert (ROOT / test).exists()
