"""The options of the command line."""

import argparse
import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from sandbox.lytics import clock
from sandbox.lytics.stream import START

# The largest rate, number of seconds and scale: the operating system can't wait for much longer.
LARGEST = 1_000_000


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.lytics",
        description="Sends a stream of audience transitions to a webhook as Lytics would, and says what must result.",
    )
    _add_where(parser.add_argument_group("where to"))
    _add_story(parser.add_argument_group("the story"))
    _add_delivery(parser.add_argument_group("how it is delivered"))
    _add_output(parser.add_argument_group("what is printed"))
    options = parser.parse_args(arguments)
    if problem := _problem(options):
        parser.error(problem)
    options.customers = options.customers or max(1, options.events // 4)
    options.progress = options.progress or ("bar" if sys.stderr.isatty() else "none")
    return options


def _add_where(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--url", metavar="U", help="the webhook")
    add("--authorization", type=header_text, default="", metavar="A", help="sent as the Authorization header")
    add("--dry-run", action="store_true", help="send nothing, only say what must result")


def _add_story(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--events", type=positive, default=10_000, metavar="N", help="transitions, not counting repeats (10000)")
    add("--audiences", type=positive, default=10, metavar="K", help="(10)")
    add("--customers", type=positive, metavar="N", help="(a quarter of the events)")
    add("--seed", type=int, default=1, metavar="S", help="the same seed and counts tell the same story (1)")
    add("--start", type=moment, default=START, metavar="TIME", help="when it begins: RFC 3339 or `now` (2026-01-05)")
    add("--slugs", choices=("plain", "awkward"), default="plain", help="awkward: upper case, hyphens, dots")
    add("--identifier-field", type=field_name, default="_id", metavar="NAME", help="(_id)")
    add("--array-identifiers", action="store_true", help="the field is a list that grows, reported by `change`")
    add("--numeric-identifiers", action="store_true", help="one customer in twenty is a number beyond 2^53")
    add("--full-profiles", action="store_true", help="every field of the profile comes along")
    add("--cloudevents", action="store_true", help="CloudEvents envelopes")


def _add_delivery(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--callers", type=positive, default=20, metavar="N", help="simultaneous calls; Lytics allows up to 20 (20)")
    add(
        "--batch", type=positive, default=300, metavar="N", help="messages in a call; 1 sends objects, not arrays (300)"
    )
    add("--rate", type=above_zero, metavar="N", help="events per second (as fast as it can)")
    add("--late", type=share, default=0.05, metavar="SHARE", help="of the calls, held back and overtaken (0.05)")
    add("--repeat", type=share, default=0.03, metavar="SHARE", help="of the calls, sent a second time (0.03)")
    add("--retry-scale", type=not_negative, default=0.01, metavar="X", help="1 waits as long as Lytics does (0.01)")
    add("--timeout", type=above_zero, default=30.0, metavar="SECONDS", help="for one call (30)")


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--memberships", type=file_to_be, metavar="FILE", help="write the memberships that must result")
    add("--state", type=file_to_be, metavar="FILE", help="keep who is a member in FILE, for `sandbox.lytics.api`")
    add("--progress", choices=("bar", "json", "none"), help="on stderr (bar on a terminal)")
    add("--json", action="store_true", help="the summary as one JSON object")


def _problem(options: argparse.Namespace) -> str | None:
    if options.state and options.memberships and options.state.absolute() == options.memberships.absolute():
        return "--state and --memberships need a file each"
    if options.dry_run:
        return None
    if not options.url:
        return "--url is needed unless --dry-run is given"
    return None if _is_address(options.url) else f"--url: {options.url!r} is not an http or https address"


def _is_address(url: str) -> bool:
    try:
        address = urlsplit(url)
        return address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:  # an IPv6 address without its bracket, or a port above 65535
        return False


def positive(text: str) -> int:
    return int(_checked(int(text) >= 1, text, "is less than 1"))


def above_zero(text: str) -> float:
    return float(_checked(0 < float(text) <= LARGEST, text, f"is not above 0, or above {LARGEST:,}"))


def not_negative(text: str) -> float:
    return float(_checked(0 <= float(text) <= LARGEST, text, f"is negative, or above {LARGEST:,}"))


def share(text: str) -> float:
    return float(_checked(0 <= float(text) <= 1, text, "is not between 0 and 1"))


def field_name(text: str) -> str:
    """The name of a profile field that can be the identifier field: any but ``segment_events``."""
    return _checked(text.strip() != "" and text != "segment_events", text, "can't be the identifier field")


def header_text(text: str) -> str:
    """The value of the header. A pasted header line is accepted too."""
    value = re.sub(r"(?i)^\s*authorization\s*:\s*", "", text)
    return _checked(re.fullmatch(r"[\x20-\x7e]*", value) is not None, value, "holds what a header cannot carry")


def file_to_be(text: str) -> Path:
    """A path that can be written to. Checked at the start, not after a million events."""
    folder = Path(text).absolute().parent
    _checked(folder.is_dir() and os.access(folder, os.W_OK), text, "is in a folder that cannot be written to")
    return Path(_checked(not Path(text).is_dir(), text, "is a folder"))


def moment(text: str) -> int:
    if text == "now":
        return int(datetime.now(UTC).timestamp()) * clock.SECOND
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time") from None
    _checked(1970 < when.year < 2262, text, "is not in the years from 1971 to 2261")
    return int(when.replace(tzinfo=when.tzinfo or UTC).timestamp()) * clock.SECOND


def _checked(is_good: bool, text: str, complaint: str) -> str:
    if not is_good:
        raise argparse.ArgumentTypeError(f"{text!r} {complaint}")
    return text
