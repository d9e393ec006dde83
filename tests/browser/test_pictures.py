"""The pictures in the docs are those that ``make pictures`` writes, of existing pages. This needs no browser."""

import re
from pathlib import Path

import pytest
from django.urls import resolve

from tests.browser.pictures import FOLDER, FOUND, ROOT, TROUBLED, WELL, Picture

PICTURES = (*WELL, *FOUND, *TROUBLED)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: str(picture.name))
def test_each_picture_is_of_a_page_that_exists(picture: Picture) -> None:
    assert resolve(picture.path)
    assert (FOLDER / f"{picture.name}.png").read_bytes().startswith(b"\x89PNG")


def test_each_picture_is_shown_somewhere_and_none_is_left_over() -> None:
    """The drawings of the benchmarks and of the soak are written by them."""
    files = {path.name for path in FOLDER.iterdir()}
    pages: list[Path] = [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
    shown = {name for page in pages for name in re.findall(r"pictures/([\w.-]+)\)", page.read_text(encoding="utf-8"))}
    drawn = {name for name in files if name == "grid.svg" or name.startswith("soak-")}
    assert files == shown == {f"{picture.name}.png" for picture in PICTURES} | drawn
