"""docs/rooms.md shows the imports as they are."""

import ast
from pathlib import Path

import pytest

from tests import drawings


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """Three packages: ``shop`` with two rooms, ``wire``, and ``far`` at the top."""
    files = {
        "wire/__init__.py": '"""The wire."""',
        "shop/__init__.py": "",
        "shop/base.py": "import wire.client\nfrom shop.models import Thing",
        "shop/models/__init__.py": "from shop.base import other",
        "shop/till/__init__.py": "",
        "shop/till/pay.py": "from shop import base\nfrom wire import client",
        "far/__init__.py": "from shop.till.pay import pay\nfrom wire import client",
        "shop/migrations/__init__.py": "import far",
        "tests/__init__.py": "import far",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_the_page_of_rooms_is_current() -> None:
    """Run ``make drawings`` when this fails."""
    assert drawings.PAGE.read_text(encoding="utf-8") == drawings.page()


def test_rooms_are_found_by_their_files_and_cycles_with_a_parent_become_one_room(house: Path) -> None:
    assert drawings.room_graph(house) == {
        "far": {"shop.till", "wire"},
        "shop": {"wire"},
        "shop.till": {"shop", "wire"},
        "wire": set(),
    }


def test_an_arrow_implied_by_a_longer_path_is_not_drawn(house: Path) -> None:
    assert drawings.without_implied(drawings.room_graph(house)) == {
        "far": {"shop.till"},
        "shop": {"wire"},
        "shop.till": {"shop"},
        "wire": set(),
    }


def test_a_new_import_between_rooms_changes_the_drawing(house: Path) -> None:
    before = drawings.draw_rooms(drawings.room_graph(house))
    (house / "lone").mkdir()
    (house / "lone" / "__init__.py").write_text("import wire", encoding="utf-8")
    after = drawings.draw_rooms(drawings.room_graph(house))
    assert set(after.splitlines()) - set(before.splitlines()) == {'  lone_["lone"]', "  lone_ --> wire_"}


def test_packages_that_import_each_other_are_an_error(house: Path) -> None:
    (house / "wire" / "client.py").write_text("import far", encoding="utf-8")
    with pytest.raises(AssertionError, match="import each other"):
        drawings.room_graph(house)


def test_each_step_of_the_path_is_reached_by_imports_from_the_view_or_from_the_tasks() -> None:
    graph: dict[str, set[str]] = {}
    for step, target in drawings.path_arrows(drawings.ROOT):
        graph.setdefault(step, set()).add(target)
    for first, steps in (("audiences.receiving.views", drawings.RECEIVE), ("workers.tasks", drawings.DELIVER)):
        assert steps.keys() - drawings.reachable(graph, first) - {first} == set()


def test_every_room_has_a_docstring() -> None:
    folders = drawings.packages(drawings.ROOT)
    files = [folders[room] / "__init__.py" for room in drawings.room_graph(drawings.ROOT)]
    assert [file for file in files if not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))] == []
