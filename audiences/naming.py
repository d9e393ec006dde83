"""From a Lytics slug to the id and the name of its ODP twin."""

import re
import unicodedata
from collections.abc import Container
from itertools import chain, count

# What the ODP ids of an install begin with, unless it has a prefix of its own (``Install.odp_prefix``).
PREFIX = "lytics_"
# Characters of the column. A prefix of 40 and a slug of 500 fit; a suffix after them does not.
LONGEST_ODP_ID = 540
# The audience of the test customers in Lytics' words. Its customers have names of their own, so several installs of one
# ODP account may share its ODP id.
TEST_SEGMENT_ID = "lytics-sync-test"
# SQL for audiences whose ODP id isn't the plain one of their slug, or whose slug has changed. Two audiences of an
# install can't both have the plain id of one slug, so of two that are alike, one is among these. The index
# "audiences_with_unusual_id" is on this expression (migration 0066).
IS_UNUSUAL = (
    "(odp_id <> 'lytics_' || regexp_replace(lower(slug), '[^a-z0-9_]+', '_', 'g') OR slug <> latest_slug) IS TRUE"
)
NOT_ONE_LINE = "A name has no line breaks or other control characters."
# The characters that turn the direction of writing, as Unicode calls them.
_TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def odp_id(slug: str, *, prefix: str = PREFIX) -> str:
    """The prefix and the slug in lower case, each run of characters outside ``[a-z0-9_]`` as one underscore."""
    return prefix + _letters(slug)


def _letters(slug: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "_", slug.lower())


def is_nearly_empty(slug: str) -> bool:
    """Whether the id keeps nothing of the slug: no letter from a to z and no digit."""
    return not re.search(r"[a-z0-9]", slug.lower())


def shows(odp_id_of: str, slug: str) -> bool:
    """Whether a person who knows the slug recognises it in the id, whatever the prefix."""
    is_at_end = odp_id_of.startswith(PREFIX) and odp_id_of.endswith("_" + _letters(slug))
    return is_at_end and slug.isascii() and not is_nearly_empty(slug)


def free_odp_id(slug: str, segment_id: str, taken: Container[str], *, prefix: str = PREFIX) -> str:
    """The id for a new audience; when another segment has it already, with a suffix from the segment's own id.

    An id that would be longer than its column has fewer characters of the slug.
    """
    plain = odp_id(slug, prefix=prefix)
    if plain not in taken:
        return plain
    suffix = re.sub(r"[^a-z0-9]+", "", segment_id.lower()) or "x"
    lengths = range(min(6, len(suffix)), len(suffix) + 1)
    endings = chain((f"_{suffix[:length]}" for length in lengths), (f"_{suffix}_{number}" for number in count(2)))
    candidates = (plain[: LONGEST_ODP_ID - len(ending)] + ending for ending in endings)
    return next(candidate for candidate in candidates if candidate not in taken)


def is_one_line(name: str) -> bool:
    """Whether a name has no line break, no control character and none that turns the direction of writing."""
    return not any(
        unicodedata.category(sign) in ("Cc", "Zl", "Zp") or unicodedata.bidirectional(sign) in _TURNS for sign in name
    )


def label(slug: str) -> str:
    """The name and the description of the audience in ODP."""
    return f"Lytics - {slug}"
