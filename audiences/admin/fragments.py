"""Mask a fragment of JSON: structure and names stay, every value is hidden.

A fragment can't be parsed, so its values can't be recognised as harmless; ``masks.py`` does that for whole items.
"""

import re

from odp.redact import HIDDEN

_TOKEN = re.compile(
    r"""
    "(?P<name>[^\W\d][\w.\-]{0,60})"(?=\s*:)     # a name
    | "(?:\\.|[^"\\])*(?:"|\Z)                    # another string, which may be cut off
    | (?P<layout>[{}\[\]:,\s]+ | \b(?:true|false|null)\b)
    | [^"{}\[\]:,\s]+                             # a number, or invalid JSON
    """,
    re.VERBOSE | re.DOTALL,
)
_NAME = re.compile(r'"\s*:')


def masked_ends(first: str, last: str) -> tuple[str, str]:
    """The beginning and the end of one text."""
    if not first.lstrip().startswith(("{", "[")):
        return "This is not JSON.", ""
    # The end may begin inside a string, so it is read in both ways. The one with more names is right.
    within, between = _masked(f'"{last}'), _masked(last)
    return _masked(first), max(within, between, key=lambda shown: len(_NAME.findall(shown)))


def _masked(text: str) -> str:
    return _TOKEN.sub(_hidden, text)


def _hidden(found: re.Match[str]) -> str:
    if found["layout"] or found["name"]:
        return found[0]
    return f'"{HIDDEN}"' if found[0].startswith('"') else HIDDEN
