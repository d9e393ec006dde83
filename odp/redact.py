"""ODP's own words, as they may be stored, shown and logged: they can quote the customer whom they are about."""

import re

_EMAIL = re.compile(r"[^\s'\"<>()\[\]{},;]+@[^\s'\"<>()\[\]{},;]+")
# What stands in quotes: a value, unless it is the name of a field, an audience or a part of a request.
_QUOTED = re.compile(r"""(['"])((?:(?!\1).){1,300})\1""")
_NAME = re.compile(
    r"lytics_\w*|[a-z]+_user_id|[a-z]+_id|vuid|email|phone|type|action|identifiers|attributes|customers|profiles|segments"
    r"|lists|event|invalids|message|status|title|detail|boolean|string|number|true|false|null|\w*id"
)
HIDDEN = "•••"


def words(text: str) -> str:
    """``text`` without e-mail addresses and quoted values; names of fields and audiences stay."""
    text = _QUOTED.sub(lambda found: found[0] if _NAME.fullmatch(found[2]) else f"{found[1]}{HIDDEN}{found[1]}", text)
    return _EMAIL.sub(HIDDEN, text)
