"""Numbers in the addresses and forms that a browser sends."""

# No row has a number this long, and each column can be compared with it. Python reads no text of over 4,300 digits.
DIGITS = 18


def whole_number(text: str) -> int | None:
    """The number that ``text`` is, or None. Of a longer one, the first digits: no row has that number either."""
    return int(text[:DIGITS]) if text.isdecimal() else None
