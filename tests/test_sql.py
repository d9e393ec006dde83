"""SQL in ``.sql`` files: each statement is named, described and used, and its rows have the names of its columns."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.db import connection

from audiences import sql
from audiences.delivery import backoff

ROOT: Path = settings.BASE_DIR
PRODUCT = ("audiences", "lytics", "lytics_sync", "local", "odp", "outgoing", "workers")
SOURCES = sorted(
    str(file.relative_to(ROOT))
    for package in PRODUCT
    for file in (ROOT / package).rglob("*.py")
    if "migrations" not in file.parts
)
ALL_FILES = sorted(file for package in PRODUCT for file in (ROOT / package).rglob("sql/*.sql"))
FILES = [file for file in ALL_FILES if file.name != sql.FRAGMENTS]
PARAMETER = re.compile(r"%\((\w+)\)s")


def module_of(file: Path) -> ModuleType:
    return importlib.import_module(".".join([*file.parent.parent.relative_to(ROOT).parts, file.stem]))


def source_of(file: Path) -> str:
    return (file.parent.parent / f"{file.stem}.py").read_text(encoding="utf-8")


def statements(module: ModuleType) -> dict[str, sql.Statement[Any]]:
    return {name: value for name, value in vars(module).items() if isinstance(value, sql.Statement)}


def own_statements(file: Path) -> dict[str, sql.Statement[Any]]:
    """The statements that the module of a file makes, by the name of the constant."""
    assigned = {
        target.id
        for node in ast.parse(source_of(file)).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return {name: statement for name, statement in statements(module_of(file)).items() if name in assigned}


OWN = [(file, name, statement) for file in FILES for name, statement in own_statements(file).items()]


def test_there_are_sql_files() -> None:
    assert {file.stem for file in FILES} >= {"claims", "request_records", "settling"}


# --- The files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.stem))
def test_each_statement_of_a_file_is_a_constant_of_its_module(file: Path) -> None:
    made = own_statements(file).values()
    assert {statement.name for statement in made} == set(sql.parts(file))
    assert len({statement.text for statement in made}) == len(made)


def test_each_statement_is_used() -> None:
    everywhere = "\n".join((ROOT / source).read_text(encoding="utf-8") for source in SOURCES)
    unused = [
        f"{file.stem}: {constant}"
        for file, constant, _ in OWN
        for text in (source_of(file) if constant.startswith("_") else everywhere,)
        if not re.search(rf"\b{constant}\b(?! =)", text)
    ]
    assert unused == []


def test_each_fragment_is_used() -> None:
    for shared in (file for file in ALL_FILES if file.name == sql.FRAGMENTS):
        texts = "".join(file.read_text(encoding="utf-8") for file in shared.parent.glob("*.sql"))
        assert {name for name in sql.parts(shared) if "{{" + name + "}}" not in texts} == set()


@pytest.mark.parametrize("file", ALL_FILES, ids=lambda file: str(file.stem))
def test_each_statement_fragment_and_cte_is_described(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    header, cte = re.compile(r"-- (?:name|fragment): \w+"), re.compile(r"\w+ AS (?:NOT )?(?:MATERIALIZED )?\($")
    for before, line, after in zip(["", *lines], lines, [*lines[1:], ""], strict=False):
        assert len(line) <= 120
        if header.fullmatch(line):
            assert re.match(r"-- [A-Z{]", after), f"{line}: say what it gives in the next line"
        if cte.match(line):
            assert before.startswith("-- "), f"{line}: say what it is in the line before"
        assert not re.search(r"\bWITH (?!RECURSIVE$|ORDINALITY)\w|\), \w+ AS", line.partition("--")[0]), (
            f"{line}: begin each CTE on its own line"
        )


def test_each_call_gives_the_parameters_of_its_statement() -> None:
    for file in FILES:
        calls = [node for node in ast.walk(ast.parse(source_of(file))) if isinstance(node, ast.Call)]
        for constant, statement in own_statements(file).items():
            assert not re.search(r"%s|\{\{|--", statement.text), statement.name
            calls_give_the_parameters(calls, constant, statement)


def calls_give_the_parameters(calls: list[ast.Call], constant: str, statement: sql.Statement[Any]) -> None:
    wanted = set(PARAMETER.findall(statement.text))
    for node in calls:
        if ast.unparse(node.func) in (f"{constant}.run", f"{constant}.subquery"):
            given = {word.arg for word in node.keywords if word.arg}
            unpacked = any(word.arg is None for word in node.keywords)
            assert given <= wanted, constant
            assert given == wanted or unpacked, constant
        elif ast.unparse(node.func).endswith(".objects.raw"):
            text, values = node.args
            if ast.unparse(text) == f"{constant}.text":
                assert isinstance(values, ast.Dict), "give the parameters where they can be checked"
                assert {key.value for key in values.keys if isinstance(key, ast.Constant)} == wanted, constant


@pytest.mark.django_db
def test_postgresql_names_the_columns_like_the_fields_of_the_row() -> None:
    wrong = {}
    for file, _, statement in OWN:
        if "COPY" in statement.text:
            continue
        columns = columns_of(statement)
        row = getattr(statement.make, "__self__", None)
        if row is not None:  # the ``_make`` of a named tuple
            is_right = columns == list(row._fields)
        elif statement.name == "work_of_install":
            is_right = columns[:2] == ["unprovisioned", "ready"]
        elif statement.name == "lock_install" and columns != ["id"]:
            is_right = columns[0] == "has_rejections"
        else:
            is_right = True
        if not is_right:
            wrong[f"{file.stem}: {statement.name}"] = columns
    assert wrong == {}


def columns_of(statement: sql.Statement[Any]) -> list[str]:
    """The names of the columns, as PostgreSQL gives them without running the statement."""
    connection.ensure_connection()
    numbers: dict[str, int] = {}

    def numbered(found: re.Match[str]) -> str:
        return f"${numbers.setdefault(found[1], len(numbers) + 1)}"

    server = connection.connection.pgconn
    prepared = server.prepare(b"described", PARAMETER.sub(numbered, statement.text).replace("%%", "%").encode())
    assert prepared.status == psycopg.pq.ExecStatus.COMMAND_OK, (statement.name, prepared.error_message)
    described = server.describe_prepared(b"described")
    server.exec_(b"DEALLOCATE described")
    return [described.fname(column).decode() for column in range(described.nfields)]


# --- The loader ----------------------------------------------------------------------------------------------


def test_a_file_is_read_without_comments_and_with_its_fragments(tmp_path: Path) -> None:
    (tmp_path / "fragments.sql").write_text(
        "-- About.\n\n-- fragment: ripe\n-- When it is ripe.\nage > 1\n    AND red\n"
    )
    file = tmp_path / "fruit.sql"
    file.write_text("-- About.\n-- name: pick\n-- Gives 100 %.\nSELECT a, -- not sent\n    b\nFROM x WHERE {{ripe}}\n")
    statement = sql.SqlFile(file).command("pick")
    assert statement.text == "SELECT a,\n    b\nFROM x WHERE age > 1\n    AND red"


def test_an_unknown_name_or_fragment_fails_at_import(tmp_path: Path) -> None:
    file = tmp_path / "fruit.sql"
    file.write_text("-- name: pick\n-- Fruit.\nSELECT 1\n")
    with pytest.raises(KeyError, match="peel"):
        sql.SqlFile(file).command("peel")
    file.write_text("-- name: pick\n-- Fruit.\nSELECT {{ripe}}\n")
    with pytest.raises(KeyError, match="ripe"):
        sql.SqlFile(file)


def test_a_subquery_has_its_named_parameters_in_the_order_of_the_text(tmp_path: Path) -> None:
    file = tmp_path / "fruit.sql"
    file.write_text("-- name: pick\n-- Fruit.\nSELECT %(least)s + 0 * %(most)s + 0 * %(least)s\n")
    subquery = sql.SqlFile(file).for_models("pick").subquery(most=9, least=7)
    assert subquery.params == [7, 9, 7]
    assert subquery.sql == "SELECT %s + 0 * %s + 0 * %s"


def test_a_mutation_of_what_a_statement_does_not_contain_fails() -> None:
    assert "RETURNING 1" in backoff._BACK_OFF.replace("RETURNING brake_failures", "RETURNING 1").text
    with pytest.raises(ValueError, match="back_off does not contain"):
        backoff._BACK_OFF.replace("RETURNING nothing", "")


# --- SQL elsewhere in the product ----------------------------------------------------------------------------


def has_positional_parameter(module: ast.Module) -> bool:
    """Whether a string looks like SQL and has ``%s``, other than as an argument of the SQL function ``format``."""
    texts = [node.value for node in ast.walk(module) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    for node in ast.walk(module):
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(str(part.value) for part in node.values if isinstance(part, ast.Constant)))
    looks_like_sql = re.compile(r"\b(?:SELECT|INSERT|UPDATE|DELETE|VALUES|WHERE|FROM)\b")
    return any(looks_like_sql.search(text) and "%s" in re.sub(r"format\('[^']*'", "", text) for text in texts)


def reads_by_number(module: ast.Module) -> bool:
    """Whether a column of a fetched row is read by its number: ``row[0]``, ``row[:-1]``, ``fetchone()[0]``."""
    return any(
        isinstance(node, ast.Subscript) and is_number(node.slice) and is_row(node.value, rows)
        for function in ast.walk(module)
        if isinstance(function, ast.FunctionDef)
        for rows in [set(fetched(function))]
        for node in ast.walk(function)
    )


def is_number(place: ast.expr) -> bool:
    if isinstance(place, ast.Slice):
        return True
    return isinstance(place, ast.UnaryOp) or (isinstance(place, ast.Constant) and isinstance(place.value, int))


def is_row(value: ast.expr, rows: set[str]) -> bool:
    return fetches(value) or (isinstance(value, ast.Name) and value.id in rows)


def fetches(value: ast.AST) -> bool:
    calls = (node for node in ast.walk(value) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute))
    return any(call.func.attr.startswith("fetch") for call in calls if isinstance(call.func, ast.Attribute))


def fetched(function: ast.FunctionDef) -> Iterator[str]:
    """The names in a function that stand for fetched rows, or for one of them."""
    names: set[str] = set()
    for _ in range(3):  # rows, then one of them in a loop, then a part of it
        for node in ast.walk(function):
            pairs: list[tuple[ast.expr, ast.expr]] = []
            if isinstance(node, ast.Assign):
                pairs = [(target, node.value) for target in node.targets]
            elif isinstance(node, ast.NamedExpr):
                pairs = [(node.target, node.value)]
            elif isinstance(node, ast.For | ast.comprehension):
                pairs = [(node.target, node.iter)]
            for target, value in pairs:
                if fetches(value) or any(isinstance(part, ast.Name) and part.id in names for part in ast.walk(value)):
                    names |= {part.id for part in [target] if isinstance(part, ast.Name)}
    yield from names


def test_statements_have_named_parameters_only() -> None:
    assert [source for source in SOURCES if has_positional_parameter(parsed(source))] == []


def test_columns_are_not_read_by_number() -> None:
    assert [source for source in SOURCES if reads_by_number(parsed(source))] == []


def parsed(source: str) -> ast.Module:
    return ast.parse((ROOT / source).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "code",
    [
        "def f(): return cursor.fetchone()[0]",
        "def f():\n    row = cursor.fetchone()\n    return row[:-1]",
        "def f(): return [row[0] for row in cursor.fetchall()]",
        "def f():\n    rows = cursor.fetchall()\n    for row in rows:\n        print(row[-1])",
        "def f():\n    if row := cursor.fetchone():\n        return row[2]",
    ],
)
def test_reading_by_number_is_recognised(code: str) -> None:
    assert reads_by_number(ast.parse(code))


@pytest.mark.parametrize("code", ["x = 'SELECT 1 WHERE id = %s'", "x = f'SELECT {a} WHERE id = %s'"])
def test_a_positional_parameter_is_recognised(code: str) -> None:
    assert has_positional_parameter(ast.parse(code))
