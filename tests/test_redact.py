"""Quoted customers are masked whole, whatever quotation marks ODP uses and whatever a value has in it."""

import json
from itertools import product

import pytest

from odp import redact
from odp.redact import HIDDEN

PAIRS = ["''", '""', "``", "`'", "´´", "‘’", "’’", "‚‘", "“”", "””", "„“", "«»", "»«", "‹›", "「」", "＂＂", "❝❞", "❛❜"]
INSIDE = "'\"’“ ,\\.-(:"
ENTITIES = [
    *(("&#39;", "&#39;"), ("&#039;", "&#039;"), ("&#x27;", "&#X27;"), ("&apos;", "&apos;"), ("&lsquo;", "&rsquo;")),
    *(("&quot;", "&quot;"), ("&#34;", "&#34;"), ("&ldquo;", "&rdquo;"), ("&laquo;", "&raquo;")),
    *(("\\'", "\\'"), ('\\"', '\\"'), ("\\u0027", "\\u0027"), ("\\u0022", "\\u0022"), ("\\u201c", "\\u201D")),
    *(("\\x27", "\\x27"), ("&sbquo;", "&lsquo;"), ("&bdquo;", "&ldquo;"), ("&lsaquo;", "&rsaquo;")),
]
NUMBERED = [
    (form.format(ord(before)), form.format(ord(after)))
    for before, after in map(tuple, PAIRS)
    for form in ("&#{};", "&#x{:X};", "\\u{:04x}")
]


def is_masked(said: str) -> bool:
    shown = redact.words(said)
    return not any(part in shown for part in ("zaphod", "brien")) and redact.words(shown) == shown


@pytest.mark.parametrize("pair", PAIRS)
def test_no_part_of_a_quoted_value_is_left(pair: str) -> None:
    inside = ["".join(some) for length in (1, 2) for some in product(INSIDE, repeat=length)]
    around = product(["", "+", "(", ".", "\\", "'", '"', " "], repeat=2)
    values = [f"zaphod{some}brien" for some in inside]
    values += [f"{before}zaphod{some}brien{after}" for (before, after), some in product(around, INSIDE)]
    said = [f"customer {pair[0]}{value}{pair[1]} is unknown" for value in values]
    assert [one for one in said if not is_masked(one)] == []


@pytest.mark.parametrize("value", ["o'brien", "zaphod o'brien", "o’brien", "o\\'brien", "o''brien", "o&#39;brien"])
def test_a_value_with_an_apostrophe_is_masked_and_the_words_around_it_stay(value: str) -> None:
    def saying(quoted: str) -> list[str]:
        quotes = [*map(tuple, PAIRS), *ENTITIES, *NUMBERED]
        return [
            f"It can't find {before}{quoted}{after}, which isn't in {before}fs_user_id{after}"
            for before, after in quotes
        ]

    assert [redact.words(said) for said in saying(value)] == saying(HIDDEN)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("'James' book' is unknown", "'•••' is unknown"),
        ("“zaphod “the second” brien” is unknown", "“•••” is unknown"),
        ("\"zaphod 'o'brien'\" and 'kim'", "\"•••\" and '•••'"),
        ('{"error": "no \\"zaphod\\" here"}', '{"•••": "•••"}'),
        ('{\\"email\\": \\"zaphod brien\\"}', '{\\"email\\": \\"•••\\"}'),
        ('["fs_user_id", "", "+49170", ".x"]', '["fs_user_id", "", "•••", "•••"]'),
        ("id='' and email='zaphod'", "id='' and email='•••'"),
        ("''zaphod'' is unknown", "''•••'' is unknown"),
        ("u'zaphod' and b'brien' are unknown", "u'•••' and b'•••' are unknown"),
        ("id'4711' is unknown", "id'•••' is unknown"),
        (f"'{'zaphod' * 100}' is unknown", "'•••' is unknown"),
        ("'zaphod\nbrien' is unknown", "'•••' is unknown"),
        ("the value 'zaphod bri", "the value '•••"),
        ("o'brien@example.com is unknown", "••• is unknown"),
        ("(x'-zaphod@example.com)", "(x'•••)"),
    ],
)
def test_a_quoted_value_ends_where_its_quote_ends(said: str, shown: str) -> None:
    assert redact.words(said) == shown
    assert redact.words(shown) == shown


@pytest.mark.parametrize(
    "said",
    [
        "It doesn't answer, and can't be reached: the customers' list isn't there, O'Brien's neither",
        "The customers' ids and the audiences' names aren't known",
        "O'Brien is no 'email' of fs_user_id",
        "It isn’t here and won’t come",
    ],
)
def test_an_apostrophe_begins_no_quoted_value(said: str) -> None:
    assert redact.words(said) == said


@pytest.mark.parametrize("value", ["o'brien", "o’brien", 'zaphod "z" brien', "zaphod & brien", "zoë-brien"])
def test_a_value_of_the_request_is_masked_however_a_response_escapes_it(value: str) -> None:
    values = redact.values_in({"identifier": value})
    for spelled in (value, json.dumps(value)[1:-1], value.replace("'", "\\'"), value.replace("'", "''")):
        assert redact.without(f"{spelled} has no profile", values) == f"{HIDDEN} has no profile"


def test_a_value_of_which_words_masks_a_part_is_masked_whole() -> None:
    value = "Kim Lee <kim@example.com>"
    said = redact.words(f"customer {value} is not allowed")
    assert redact.without(said, redact.values_in([value])) == "customer ••• is not allowed"
