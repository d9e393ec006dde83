"""Write docs/settings.md from lytics_sync/settings.py (``make settings``): each setting that the environment gives.

A setting is a call of a reader in ``lytics_sync/env.py``. Its description is the first sentence of the comment above.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lytics_sync import logs
from outgoing.retry_after import LONGEST_RETRY_AFTER

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "settings.md"
SETTINGS = ROOT / "lytics_sync" / "settings.py"

KINDS = {
    "text": "text",
    "url": "URL",
    **dict.fromkeys(("words", "hosts", "exact_hosts", "origins", "emails"), "list, with commas"),
    "host": "host name",
    "email": "e-mail address",
    "integer": "whole number",
    "number": "number",
    "flag": "yes or no",
    "json_object": "JSON object",
}
# Names that the defaults use and settings.py imports.
IMPORTED = {"LONGEST_RETRY_AFTER": LONGEST_RETRY_AFTER, "logs": logs}
HEADING = re.compile(r"^# --- (.+?) -+$")


class Setting(NamedTuple):
    name: str
    kind: str
    default: str
    description: str
    section: str
    bounds: dict[str, float] = {}


def first_sentence(comment: str) -> str:
    return re.split(r"(?<=\.)\s", comment, maxsplit=1)[0].strip()


def comment_above(lines: Sequence[str], line: int) -> str:
    """The comment that ends right above the line with this number, counted from 1."""
    found: list[str] = []
    for text in reversed(lines[: line - 1]):
        if not text.strip().startswith("# ") or HEADING.match(text):
            break
        found.insert(0, text.strip().removeprefix("# "))
    return " ".join(found)


def constants(tree: ast.Module) -> dict[str, object]:
    """The module's names whose values don't depend on the environment."""
    found: dict[str, object] = dict(IMPORTED)
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


def default_of(call: ast.Call, known: dict[str, object]) -> str:
    """The default as it would be written in the environment; a setting that it is made of is named in braces."""
    if len(call.args) == 1:
        return "**required**" if _reader(call) in ("text", "words") else "empty"
    value = call.args[-1]
    if isinstance(value, ast.Name) and value.id not in known:
        return f"`{{{value.id}}}`"
    if isinstance(value, ast.JoinedStr):
        return f"`{''.join(map(_piece, value.values))}`"
    evaluated = eval(compile(ast.Expression(value), "default", "eval"), dict(known))  # noqa: S307  # our own source
    if isinstance(evaluated, bool):
        return "yes" if evaluated else "no"
    return "empty" if evaluated == "" else f"`{evaluated:g}`" if isinstance(evaluated, float) else f"`{evaluated}`"


def _piece(part: ast.expr) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    (name,) = {node.id for node in ast.walk(part) if isinstance(node, ast.Name) and node.id.isupper()}
    return f"{{{name}}}"


def _reader(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""


def bounds_of(call: ast.Call, known: dict[str, object]) -> dict[str, float]:
    """``least``, ``most`` and ``zero`` of a number."""
    return {
        str(one.arg): eval(compile(ast.Expression(one.value), "bound", "eval"), dict(known))  # noqa: S307  # our own source
        for one in call.keywords
        if one.arg != "is_base"
    }


def kind_of(call: ast.Call, known: dict[str, object]) -> str:
    if bounds := bounds_of(call, known):
        zero = "0 or " if bounds.get("zero") else ""
        return f"{KINDS[_reader(call)]}, {zero}{bounds['least']} to {bounds['most']}"
    if _reader(call) != "one_of":
        return KINDS[_reader(call)]
    choices = eval(compile(ast.Expression(call.args[1]), "choices", "eval"), dict(known))  # noqa: S307  # our own source
    return f"one of {', '.join(choices)}"


def read(source: str) -> Iterator[Setting]:
    """Each setting of the module, in its order."""
    tree, lines = ast.parse(source), source.splitlines()
    known = constants(tree)
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "env"
        and node.args
    ]
    for call in sorted(calls, key=lambda call: call.lineno):
        name = call.args[0]
        assert isinstance(name, ast.Constant), "the name of a setting is written out"
        headings = [match[1] for line in lines[: call.lineno] if (match := HEADING.match(line))]
        yield Setting(
            name=str(name.value),
            kind=kind_of(call, known),
            default=default_of(call, known),
            description=first_sentence(comment_above(lines, call.lineno)),
            section=headings[-1] if headings else "General",
            bounds=bounds_of(call, known),
        )


def table(found: Sequence[Setting]) -> str:
    rows = [f"| `{one.name}` | {one.kind} | {one.default} | {one.description} |" for one in found]
    return "\n".join(["| name | type | default | meaning |", "|---|---|---|---|", *rows])


def page(source: str | None = None) -> str:
    found = list(read(source or SETTINGS.read_text(encoding="utf-8")))
    sections = list(dict.fromkeys(one.section for one in found))
    tables = [f"## {section}\n\n{table([one for one in found if one.section == section])}" for section in sections]
    return "\n\n".join([HEAD, *tables]) + "\n"


HEAD = """# Settings

`make settings` writes this page from `lytics_sync/settings.py`, and `tests/test_settings_page.py` fails when it is
stale. Each setting is an environment variable. [.env.example](../.env.example) explains how to fill them in, with the
variables that only compose or the local runner reads. In a default, `{NAME}` stands for the value of another setting,
or its host name.

White space around a value is ignored, and an empty value is the default. A value in quotation marks, or with a line end
or an invisible character in it, is refused, and so is a number outside its range: the processes don't start, and one
sentence names the setting."""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
