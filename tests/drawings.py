"""Draw docs/rooms.md from the imports of the code (``make drawings``): the rooms, and the path of one event.

Packages and their sub-packages are found by their ``__init__.py``, so a package that moves only needs another run.
"""

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "rooms.md"
# Migrations are history, and tests and benchmarks import everything.
NOT_DRAWN = {"tests", "benchmarks", "migrations"}

Graph = Mapping[str, set[str]]

# The modules that one event passes, in order, each with what it does there. The arrows come from their imports.
RECEIVE = {
    "audiences.receiving.views": "receive a call of Lytics, respond",
    "audiences.receiving.authentication": "authenticate",
    "audiences.receiving.body": "read and decompress the body",
    "audiences.receiving.ingest": "store events in one transaction",
    "lytics.payload": "parse the body",
    "audiences.receiving.audience_lookup": "find or create the audience",
    "audiences.wake": "send a hint",
}
DELIVER = {
    "workers.tasks": "take the hint, or sweep every second",
    "workers.drain": "deliver while there is work",
    "workers.pace": "wait for the rate limit",
    "audiences.delivery.claims": "lease lanes",
    "audiences.delivery.reading": "read events and ledger",
    "audiences.delivery.fold": "keep what is new",
    "audiences.delivery.request_records": "record the request",
    "workers.bisection": "find rejected changes",
    "odp.client": "call ODP",
    "audiences.delivery.settling": "settle cursors and ledger",
}


def packages(root: Path) -> dict[str, Path]:
    """The top-level packages and the packages directly inside them, by dotted name."""

    def inside(folder: Path) -> list[Path]:
        return sorted(file.parent for file in folder.glob("*/__init__.py") if file.parent.name not in NOT_DRAWN)

    found = {top.name: top for top in inside(root)}
    return found | {f"{name}.{sub.name}": sub for name, top in found.items() for sub in inside(top)}


def modules(root: Path) -> dict[str, Path]:
    """Each file of the packages, by dotted name."""
    files = (file for folder in packages(root).values() for file in folder.rglob("*.py"))
    inside = {file.relative_to(root) for file in files}
    return {
        ".".join(file.with_suffix("").parts).removesuffix(".__init__"): root / file
        for file in sorted(inside)
        if not NOT_DRAWN.intersection(file.parts)
    }


def imports(file: Path) -> set[str]:
    """The dotted names that a file imports: modules, and names in them."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {
        f"{node.module}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    }


def owner(name: str, among: Iterable[str]) -> str | None:
    """The longest of the names ``among`` that ``name`` is, or lies in."""
    return max((one for one in among if name == one or name.startswith(f"{one}.")), key=len, default=None)


def reachable(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    to_visit = [start]
    while to_visit:
        new = graph.get(to_visit.pop(), set()) - found
        found |= new
        to_visit.extend(new)
    return found


def room_graph(root: Path) -> dict[str, set[str]]:
    """Which room imports which. A sub-package in a cycle with the modules beside it is one room with them."""
    rooms = packages(root)
    graph: dict[str, set[str]] = {room: set() for room in rooms}
    for name, file in modules(root).items():
        here = owner(name, rooms)
        assert here
        graph[here] |= {there for imported in imports(file) if (there := owner(imported, rooms)) and there != here}
    cycles = {room: {other for other in reachable(graph, room) if room in reachable(graph, other)} for room in graph}
    name_of = {room: min({room, *cycle}, key=len) for room, cycle in cycles.items()}
    for room, name in name_of.items():
        assert owner(room, [name]), f"{room} and {name} import each other"
    merged: dict[str, set[str]] = {name: set() for name in name_of.values()}
    for room, targets in graph.items():
        merged[name_of[room]] |= {name_of[target] for target in targets} - {name_of[room]}
    return merged


def without_implied(graph: Graph) -> dict[str, set[str]]:
    """The graph without each arrow that a longer path implies. The graph has no cycles."""
    return {
        room: {
            target
            for target in targets
            if not any(target in reachable(graph, other) for other in targets if other != target)
        }
        for room, targets in graph.items()
    }


def node_id(name: str) -> str:
    """Mermaid takes the id of a subgraph for no node, so that a node never has the bare name of a package."""
    return f"{name.replace('.', '_')}_"


def mermaid(lines: Iterable[str]) -> str:
    return "\n".join(["```mermaid", *lines, "```"])


def draw_rooms(graph: Graph) -> str:
    tops = sorted({name.split(".")[0] for name in graph})
    lines = ["flowchart TD"]
    for top in tops:
        inside = [name for name in sorted(graph) if owner(name, [top])]
        if len(inside) > 1:
            lines.append(f"  subgraph {top}")
            lines += [f'    {node_id(name)}["{name.removeprefix(f"{top}.")}"]' for name in inside]
            lines.append("  end")
        else:
            lines.append(f'  {node_id(top)}["{top}"]')
    arrows = without_implied(graph)
    lines += [f"  {node_id(room)} --> {node_id(target)}" for room in sorted(arrows) for target in sorted(arrows[room])]
    return mermaid(lines)


def path_arrows(root: Path) -> list[tuple[str, str]]:
    """The imports between the modules of the path. A module is missing here if it moved: name its new place above."""
    steps, files = {**RECEIVE, **DELIVER}, modules(root)
    lost = sorted(steps.keys() - files.keys())
    assert not lost, f"tests/drawings.py names modules that are gone: {', '.join(lost)}"
    found = []
    for step in steps:
        targets = {owner(name, steps) for name in imports(files[step])} - {step, None}
        found += [(step, target) for target in steps if target in targets]
    return found


def draw_path(root: Path) -> str:
    arrows = path_arrows(root)
    lines = ["flowchart LR", "  Lytics([Lytics])", "  ODP([ODP])"]
    for title, steps in (("receive", RECEIVE), ("deliver", DELIVER)):
        lines.append(f"  subgraph {title}")
        lines += [f'    {node_id(name)}["{name}<br/>{does}"]' for name, does in steps.items()]
        lines.append("  end")
    lines.append(f"  Lytics -- POST --> {node_id('audiences.receiving.views')}")
    lines += [f"  {node_id(step)} --> {node_id(target)}" for step, target in arrows]
    lines.append(f"  {node_id('audiences.wake')} -. Redis .-> {node_id('workers.tasks')}")
    lines.append(f"  {node_id('odp.client')} -- POST --> ODP")
    return mermaid(lines)


def page(root: Path = ROOT) -> str:
    return f"""# Rooms, and the path of one event

`make drawings` writes this page from the imports of the code, and `tests/test_drawings.py` fails when it is stale.
[Decision 0030](decisions/0030-rooms.md) says why the rooms are these.

## Rooms

An arrow means *imports*. An arrow that a longer path implies is left out. `sandbox` imports nothing of the product.
The docstring of the `__init__.py` of each room says what happens there.

{draw_rooms(room_graph(root))}

## The path of one event

A solid arrow between two modules means *imports*. The dotted arrow is a hint through Redis, which may be lost: a sweep
looks for waiting events every second. The events themselves are in PostgreSQL.

{draw_path(root)}
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
