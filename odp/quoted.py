"""Text in quotes: where each quoted value begins and ends, although apostrophes, quotes and escapes may be inside it.

The characters beside a quotation mark say whether it opens or closes a value. An ambiguous value ends at the later
mark, and a value that nothing closes ends with the text. So more than a value may be masked, but never less.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from enum import Enum, auto
from html.entities import html5
from itertools import islice
from typing import NamedTuple

_SINGLES, _DOUBLES = "'‘’‚‛‹›`´′＇❛❜", '"“”„‟«»″＂「」『』❝❞〝〞'


def _spellings(marks: str) -> str:
    """A pattern for each of ``marks``: the character, or as HTML, JSON or Python escape it."""
    names = "|".join(name for name, character in html5.items() if character in marks and name.endswith(";"))
    decimal, short, long = ("|".join(f"{ord(mark):{form}}" for mark in marks) for form in ("d", "x", "04x"))
    return rf"[{marks}]|&(?:{names}|#0*(?:{decimal});|#x0*(?:{short});)|\\u(?:{long})|\\x(?:{short})"


# Marks that follow each other directly count as one: a mark doubled to escape it, or an empty value. Only the first of
# several backslashes begins a search, so that a text of them takes no quadratic time.
_MARK = re.compile(
    rf"(?<!\\)(?P<escape>\\*)(?:(?P<single>(?:{_spellings(_SINGLES)})+)|(?P<double>(?:{_spellings(_DOUBLES)})+))",
    re.IGNORECASE,
)
# The first character of a mark. Most texts have no such character, which this finds 70 times as fast as ``_MARK``.
_BEGINNING = re.compile(rf"[{_SINGLES}{_DOUBLES}&\\]")
# The letters after the apostrophe of a contraction or a possessive, as in "doesn't".
_CONTRACTION = re.compile(r"(?:t|s|re|ve|ll|d|m)\b")
# Python writes b'…' for bytes and u'…' for text.
_STRING_PREFIX = re.compile(r"(?<!\w)[bfru]{1,2}\Z", re.IGNORECASE)
_BEFORE_OPENING, _AFTER_CLOSING = " \t\r\n([{<", " \t\r\n.,;:!?)]}>"


class _Role(Enum):
    INNER = auto()  # within a word: usually an apostrophe
    OPENING = auto()
    CLOSING = auto()
    EITHER = auto()


class _Mark(NamedTuple):
    start: int
    end: int
    is_double: bool
    # The number of backslashes before it; 0 for an even number, which escapes backslashes and no quotation mark.
    escape: int
    role: _Role
    is_apostrophe: bool
    is_empty_value: bool
    # Whether a value that was closed already may end here: it had another quotation mark inside.
    closes_late: bool


def values(text: str, *, is_name: Callable[[str], object]) -> Iterator[tuple[int, int]]:
    """Begin and end of each quoted value, except names. A name ends at the first mark that closes it."""
    if not _BEGINNING.search(text):
        return
    marks, place = [_mark(text, found) for found in _MARK.finditer(text)], 0
    # Marks within words close nothing. They are left out once, so that a text of apostrophes alone isn't read n² times.
    closing = {
        kind: [mark for mark in marks if mark.is_double is kind and mark.role is not _Role.INNER]
        for kind in (False, True)
    }
    while place < len(marks):
        opening = marks[place]
        same = closing[opening.is_double]
        after = bisect_right(same, opening.start, key=lambda mark: mark.start)
        end = _end(text, opening, islice(same, after, None), is_name)
        place += 1
        if end is None:
            continue
        if not is_name(text[opening.end : end]):
            yield opening.end, end
        while place < len(marks) and marks[place].start <= end:
            place += 1


def _mark(text: str, found: re.Match[str]) -> _Mark:
    start, end, many = found.start(), found.end(), len(found["escape"])
    before, after = text[start - 1 : start] if start else " ", text[end : end + 1] or " "
    is_after_word, is_before_word = _is_of_word(before), _is_of_word(after)
    is_single = found["single"] is not None
    is_contracted = bool(is_single and _CONTRACTION.match(text, end))
    if is_after_word and is_before_word:
        has_prefix = not is_contracted and _STRING_PREFIX.search(text[max(0, start - 3) : start])
        role = _Role.OPENING if has_prefix else _Role.INNER
    elif is_after_word or (not before.isspace() and after.isspace()):
        role = _Role.CLOSING
    elif is_before_word or (before in _BEFORE_OPENING and after not in _AFTER_CLOSING):
        role = _Role.OPENING
    else:
        role = _Role.EITHER
    is_empty_value = end - start == 2 and not is_after_word and role is not _Role.OPENING
    is_plural = is_single and before == "s" and after.isspace()
    return _Mark(
        start,
        end,
        is_double=not is_single,
        escape=many if many % 2 else 0,
        role=role,
        is_apostrophe=(role is _Role.INNER and is_contracted) or is_plural,
        is_empty_value=is_empty_value,
        closes_late=not is_empty_value and (role is _Role.CLOSING or (role is _Role.EITHER and after.isspace())),
    )


def _is_of_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _end(text: str, opening: _Mark, same: Iterator[_Mark], is_name: Callable[[str], object]) -> int | None:
    """Where the value ends that ``opening`` opens; None when that opens nothing. One of ``same`` may close it."""
    if opening.is_apostrophe or opening.is_empty_value:
        return None
    if opening.role in (_Role.INNER, _Role.CLOSING):
        # It opens only if the next mark can't: in "O'Brien is no 'email'" it is an apostrophe.
        following = next(same, None)
        return following.start if following and following.role is _Role.CLOSING else None
    end: int | None = None
    # Where nothing else closes the value: at an escaped mark, or else at the end of the text.
    without_closing = len(text) if text[opening.end :].strip() else None
    depth = 1
    for mark in same:
        if depth == 0 and not mark.closes_late:
            break
        if depth > 0 and mark.escape > opening.escape:
            without_closing = mark.start if mark.role is _Role.CLOSING else without_closing
        elif mark.role is _Role.OPENING:
            depth += 1
        else:
            end, depth = mark.start, max(0, depth - 1)
            if depth == 0 and is_name(text[opening.end : end]):
                break
    return without_closing if end is None else end
