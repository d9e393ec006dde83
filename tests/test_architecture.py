"""The house as it was drawn: imports run one way, and each fact has one writer."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from django.conf import settings

from audiences import sql, wake
from workers.app import app

ROOT: Path = settings.BASE_DIR

# Allowed imports: a package may import packages of a lower floor and itself.
FLOORS = {"outgoing": 0, "lytics": 1, "odp": 1, "audiences": 2, "workers": 3, "lytics_sync": 4, "local": 5}
# The packages of the wires, which know no models.
WIRES = ("lytics/", "odp/", "outgoing/")
OURS = {*FLOORS, "sandbox", "benchmarks", "tests"}
# The same inside ``audiences``; "" is for the modules outside of all rooms.
ROOMS = {
    "": 0,
    "delivery": 1,
    "learning": 1,
    "receiving": 2,
    "insight": 3,
    "agreement": 4,
    "operations": 5,
    "admin": 6,
    "management": 6,
    "front": 7,
}

# Takes one person out of all tables.
FORGETTING = "audiences/operations/forgetting.py"
# Deletes rows that are older than their retention.
PRUNING = "audiences/operations/pruning.py"
# Who may write which table; migrations and tests aside.
WRITERS = {
    "Event": {"audiences/receiving/ingest.py", "audiences/receiving/plain_calls.py"},
    "Receipt": {"audiences/receiving/ingest.py", "audiences/receiving/plain_calls.py"},
    "FutureTime": {"audiences/receiving/ingest.py"},
    # A lane comes into being with its audience and is then written by lanes alone.
    "Lane": {f"audiences/delivery/{name}.py" for name in ("claims", "request_records", "settling", "holds", "skipping")}
    | {FORGETTING},
    "Run": {f"audiences/delivery/{name}.py" for name in ("request_records", "settling", "skipping")},
    "Delivery": {f"audiences/delivery/{name}.py" for name in ("request_records", "skipping", "unconfirmed")}
    | {FORGETTING, PRUNING},
    "Membership": {"audiences/delivery/settling.py"},
    "Token": {"audiences/receiving/tokens.py"},
    # A skip stops unfinished Resends in the transaction that moves the cursors.
    "Resend": {"audiences/operations/resends.py", "audiences/operations/skips.py", FORGETTING},
    "Skip": {"audiences/operations/skips.py"},
    "Retirement": {"audiences/operations/retiring.py", FORGETTING},
    "Profile": {"audiences/receiving/identifier_lists.py", FORGETTING},
    "Minute": {"audiences/insight/rollup.py"},
    "Pace": {"workers/pace.py"},
    "Worker": {"audiences/insight/heartbeats.py"},
    "Trial": {"audiences/insight/trials.py"},
    "Trouble": {"audiences/operations/troubles.py"},
    "TroubleMessage": {"audiences/operations/alert_messages.py"},
    "Twin": {"audiences/operations/twins.py", FORGETTING},
    "JobPresence": {"audiences/operations/job_looks.py"},
    "Audit": {"audiences/agreement/audits.py", FORGETTING, PRUNING},
    "ScannedMember": {"audiences/agreement/audits.py", "audiences/agreement/scanning.py", FORGETTING},
    "Difference": {
        *(f"audiences/agreement/{name}.py" for name in ("array_identifiers", "asking_odp", "comparing")),
        FORGETTING,
        PRUNING,
    },
    "LyticsAccount": {"audiences/lytics_account.py"},
    "Forgotten": {FORGETTING},
    "LogPart": {"audiences/operations/parts.py"},
    "Pruning": {PRUNING},
    "Horizon": {PRUNING},
    "GuidedChange": {"audiences/operations/changes.py", FORGETTING},
    "AudienceMove": {"audiences/operations/account_steps.py"},
}
WRITING = {
    "create",
    "bulk_create",
    "get_or_create",
    "update_or_create",
    "update",
    "bulk_update",
    "delete",
    "raw_delete",
}
CELERY = {"workers/app.py", "workers/tasks.py", "audiences/wake.py", "lytics_sync/__init__.py"}

SOURCES = sorted(
    str(file.relative_to(ROOT))
    for package in (*FLOORS, "sandbox")
    for file in (ROOT / package).rglob("*.py")
    if "migrations" not in file.parts
)


def tree(source: str) -> ast.Module:
    return ast.parse((ROOT / source).read_text(encoding="utf-8"))


@cache
def imported(source: str) -> frozenset[str]:
    """The top-level packages that a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names.add(node.module or "")
    return frozenset(name.split(".")[0] for name in names)


# --- Imports --------------------------------------------------------------------------------------------------


def test_imports_run_one_way() -> None:
    """The package ``sandbox`` imitates ODP and Lytics, and imports no other package of the project."""
    wrong = {
        (source, name)
        for source in SOURCES
        for package in (source.split("/")[0],)
        for name in imported(source) & OURS - {package}
        if FLOORS.get(name, 9) >= FLOORS.get(package, 0)
    }
    assert wrong == set()


def room(path: str) -> str:
    """The room of a module or file of ``audiences``: of ``delivery/fold.py`` and ``audiences.delivery.fold``."""
    _, first, *_ = [*path.removesuffix(".py").replace("/", ".").split("."), ""]
    return first if first in ROOMS else ""


def test_rooms_of_audiences_import_one_way() -> None:
    sources = [source for source in SOURCES if source.startswith("audiences/") and not source.endswith("apps.py")]
    named = {
        (source, f"{node.module}.{alias.name}")
        for source in sources
        for node in ast.walk(tree(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "audiences"
        for alias in node.names
    }
    wrong = {
        (source, name)
        for source, name in named
        if room(name) != room(source) and ROOMS[room(name)] >= ROOMS[room(source)]
    }
    assert wrong == set()


def test_the_wire_packages_import_no_models() -> None:
    sources = [source for source in SOURCES if source.startswith(WIRES)]
    assert [one for one in sources if imported(one) & {"django", "rest_framework", "celery"}] == []


def test_celery_is_imported_only_where_messages_are_sent_and_received() -> None:
    assert {source for source in SOURCES if "celery" in imported(source)} <= CELERY
    assert "celery" not in imported("workers/drain.py")


def test_the_domain_names_tasks_that_the_workers_have() -> None:
    app.loader.import_default_modules()
    assert {wake.DRAIN, wake.MAKE, wake.TRY_OUT} <= set(app.tasks)
    assert wake.DRAIN in app.tasks
    assert wake.RESEND in app.tasks


# --- Size -----------------------------------------------------------------------------------------------------

# A longer file is split by subject.
LINES_AT_MOST = 400


def test_no_product_file_is_too_long() -> None:
    lines = {source: len((ROOT / source).read_text(encoding="utf-8").splitlines()) for source in SOURCES}
    assert {source: count for source, count in lines.items() if count > LINES_AT_MOST} == {}


# --- Writers --------------------------------------------------------------------------------------------------


def model_of(expression: ast.AST, known: dict[str, str]) -> str | None:
    """The model of a queryset expression: ``Lane.objects.filter(…)``, or a variable that holds one."""
    while not isinstance(expression, ast.Name):
        if isinstance(expression, ast.Call):
            expression = expression.func
        elif isinstance(expression, ast.Attribute | ast.Subscript):
            if isinstance(expression, ast.Attribute) and expression.attr == "objects":
                return expression.value.id if isinstance(expression.value, ast.Name) else None
            expression = expression.value
        else:
            return None
    return known.get(expression.id)


def written(module: ast.Module) -> Iterator[str]:
    """The models that a module writes by constructing rows, through a manager, or in SQL."""
    known: dict[str, str] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Assign) and (model := model_of(node.value, known)):
            known |= {target.id: model for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in WRITERS:
                yield node.func.id
            if isinstance(node.func, ast.Attribute) and node.func.attr in WRITING:
                yield model_of(node.func.value, known) or ""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from written_by(node.value)


def written_by(statement: str) -> Iterator[str]:
    """The models whose tables a statement writes."""
    for table in re.findall(r"(?:INSERT\s+INTO|UPDATE|DELETE\s+FROM|TRUNCATE|COPY)\s+audiences_(\w+)", statement):
        yield {model.lower(): model for model in WRITERS}.get(table, table)


def written_in_sql_file(source: str) -> Iterator[str]:
    """The models that a module writes by the statements of its ``.sql`` file."""
    file = ROOT / Path(source).parent / "sql" / f"{Path(source).stem}.sql"
    if file.exists():
        shared = file.with_name(sql.FRAGMENTS)
        fragments = sql.parts(shared) if shared.exists() else {}
        statements = "\n".join(sql.parts(file).values())
        yield from written_by(re.sub(r"\{\{(\w+)\}\}", lambda found: fragments.get(found[1], ""), statements))


@cache
def written_by_module(source: str) -> frozenset[str]:
    """The models that a module writes, in its own code or by its ``.sql`` file."""
    return frozenset((*written(tree(source)), *written_in_sql_file(source)))


@pytest.mark.parametrize(
    "code",
    [
        "Lane(audience=audience)",
        "Lane.objects.create(audience=audience)",
        "Lane.objects.filter(pk=1).update(lease_token=None)",
        "lanes = Lane.objects.filter(pk=1)\nlanes.update(lease_token=None)",
        "Lane.objects.select_for_update().filter(pk=1)[:5].delete()",
        "cursor.execute('UPDATE audiences_lane AS lane SET lease_token = NULL')",
        "def late():\n    x = f'''DELETE\n   FROM audiences_lane WHERE {y}'''",
    ],
)
def test_a_writer_is_recognised(code: str) -> None:
    assert "Lane" in set(written(ast.parse(code)))


@pytest.mark.parametrize("code", ["Lane.objects.filter(pk=1).first()", "'SELECT * FROM audiences_lane'", "x: Lane = y"])
def test_the_detector_does_not_flag_reads(code: str) -> None:
    assert "Lane" not in set(written(ast.parse(code)))


@pytest.mark.parametrize("model", WRITERS)
def test_each_fact_has_one_writer(model: str) -> None:
    ours = [source for source in SOURCES if not source.startswith("sandbox/")]
    writers = {source for source in ours if model in written_by_module(source)}
    assert writers == WRITERS[model]


def test_each_type_error_that_is_ignored_has_its_reason() -> None:
    sources = [file for package in OURS for file in (ROOT / package).rglob("*.py")]
    ignored = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in sources
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(r"# type: ignore\[[\w, -]+\](?! # \w)", line)
    ]
    assert ignored == []
