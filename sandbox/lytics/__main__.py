"""python -m sandbox.lytics: sends a stream of audience transitions to a webhook, as Lytics would."""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from sandbox.lytics.audiences import Audience, audiences
from sandbox.lytics.calls import Call, calls
from sandbox.lytics.model import Memberships
from sandbox.lytics.progress import Progress
from sandbox.lytics.sender import Job, Sender
from sandbox.lytics.stream import Message, Plan, Stream


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    plan = Plan(
        events=options.events,
        audiences=audiences(how_many=options.audiences, seed=options.seed, awkward=options.slugs == "awkward"),
        seed=options.seed,
        customers=options.customers or max(1, options.events // 4),
        identifier_field=options.identifier_field,
        array_identifiers=options.array_identifiers,
        numeric_identifiers=options.numeric_identifiers,
    )
    expected = Memberships(plan.identifier_field)
    progress = Progress(style=options.progress, total=plan.events)
    job = Job(retry_scale=options.retry_scale, notice=progress.notice)
    began = monotonic()
    interrupted = False
    try:
        run(options, watched(Stream(plan), expected), job, progress)
    except KeyboardInterrupt:
        interrupted = True
    seconds = monotonic() - began
    # Half a stream has no memberships that must result.
    complete = not interrupted and not job.failed
    if options.memberships and complete:
        write(options.memberships, memberships(plan.audiences, expected))
    report(options, plan, expected, job, seconds, complete=complete)
    if interrupted:
        print("Interrupted: the rest of the stream was not sent.", file=sys.stderr)
        return 130
    return verdict(job)


def run(options: argparse.Namespace, messages: Iterable[Message], job: Job, progress: Progress) -> None:
    if options.dry_run:
        for _ in messages:
            pass
        return

    def done(call: Call) -> None:
        progress.advance(0 if call.repeated else call.events)

    sender = Sender(url=options.url, authorization=options.authorization, job=job, timeout=options.timeout, done=done)
    stream = calls(messages, batch=options.batch, late=options.late, repeat=options.repeat, seed=options.seed)
    sender.send(stream, callers=options.callers, rate=options.rate)
    progress.finish()


def watched(messages: Iterable[Message], expected: Memberships) -> Iterator[Message]:
    for message in messages:
        expected.see(message)
        yield message


def memberships(named: list[Audience], expected: Memberships) -> dict[str, Any]:
    return {
        "audiences": {
            audience.slug: {
                "segment_id": audience.segment_id,
                "odp_id": audience.odp_id,
                "members": expected.members(audience.segment_id),
                "others": expected.others(audience.segment_id),
            }
            for audience in named
        }
    }


def write(path: Path, document: dict[str, Any]) -> None:
    """Whole or not at all: whoever compares with it must never read half."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(document, indent=1), encoding="utf-8")
    os.replace(unfinished, path)


def report(
    options: argparse.Namespace, plan: Plan, expected: Memberships, job: Job, seconds: float, *, complete: bool
) -> None:
    tally = job.tally
    facts = {
        "calls": tally.calls,
        "events": plan.events,
        "repeated_calls": tally.repeated_calls,
        "late_calls": tally.late_calls,
        "retried": tally.retried,
        "omitted": tally.omitted,
        "seconds": round(seconds, 3),
        "answers": dict(sorted(tally.answers.items())),
        "audiences": [
            {
                "segment_id": audience.segment_id,
                "slug": audience.slug,
                "odp_id": audience.odp_id,
                "members": expected.size(audience.segment_id),
            }
            for audience in plan.audiences
        ],
        "memberships_file": str(options.memberships) if options.memberships and complete else None,
    }
    print(json.dumps(facts) if options.json else table(facts))


def table(facts: dict[str, Any]) -> str:
    widest = max(len(one["slug"]) for one in facts["audiences"])
    rows = [f"{one['slug']:<{widest}}  {one['members']:>9,}" for one in facts["audiences"]]
    answers = ", ".join(f"{times:,} × {status}" for status, times in facts["answers"].items()) or "none"
    return "\n".join(
        [
            f"{'audience':<{widest}}  {'members':>9}",
            *rows,
            "",
            f"{facts['events']:,} events in {facts['calls']:,} calls and {facts['seconds']:,.1f} s "
            f"({facts['repeated_calls']:,} repeated, {facts['late_calls']:,} late, "
            f"{facts['retried']:,} retries, {facts['omitted']:,} given up)",
            f"answers: {answers}",
        ]
    )


def verdict(job: Job) -> int:
    if job.failed:
        print(f"The job has failed: {job.failed}. Lytics would leave it so until someone restarts it.", file=sys.stderr)
    elif job.tally.omitted:
        print(f"{job.tally.omitted} calls were given up for good; their events are lost.", file=sys.stderr)
    return 1 if job.failed or job.tally.omitted else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sandbox.lytics", description=__doc__)
    add = parser.add_argument
    add("--url", help="the webhook")
    add("--authorization", default="", metavar="TEXT", help="sent as the Authorization header")
    add("--events", type=positive, default=10_000, metavar="N", help="transitions, not counting repeats")
    add("--audiences", type=positive, default=10, metavar="K")
    add("--customers", type=positive, metavar="N", help="a quarter of the events unless given")
    add("--seed", type=int, default=1, help="the same seed tells the same story")
    add("--callers", type=positive, default=20, metavar="N", help="simultaneous calls; Lytics allows up to 20")
    add("--batch", type=positive, default=300, metavar="N", help="messages in a call; 1 sends objects, not arrays")
    add("--rate", type=positive_number, metavar="EVENTS_PER_SECOND", help="as fast as it can unless given")
    add("--identifier-field", default="_id", metavar="NAME")
    add("--array-identifiers", action="store_true", help="a list of identifiers that grows, told by `change`")
    add("--numeric-identifiers", action="store_true", help="some identifiers are numbers beyond 2^53")
    add("--slugs", choices=("plain", "awkward"), default="plain")
    add("--late", type=share, default=0.05, metavar="SHARE", help="of the calls, held back and overtaken")
    add("--repeat", type=share, default=0.03, metavar="SHARE", help="of the calls, sent twice")
    add("--retry-scale", type=not_negative, default=0.01, metavar="X", help="1 waits between tries as long as Lytics")
    add("--timeout", type=positive_number, default=30.0, metavar="SECONDS", help="for one call")
    add("--memberships", type=Path, metavar="FILE", help="write the memberships that must result")
    add("--progress", choices=("bar", "json", "none"), default="bar" if sys.stderr.isatty() else "none")
    add("--json", action="store_true", help="the summary as one JSON object")
    add("--dry-run", action="store_true", help="send nothing")
    options = parser.parse_args(arguments)
    if problem := find_problem(options):
        parser.error(problem)
    return options


def find_problem(options: argparse.Namespace) -> str | None:
    if options.memberships and not os.access(options.memberships.absolute().parent, os.W_OK):
        return f"--memberships: cannot write in {options.memberships.absolute().parent}"
    if options.dry_run:
        return None
    if not options.url:
        return "--url is needed unless --dry-run is given"
    address = urlsplit(options.url)
    if address.scheme not in ("http", "https") or not address.hostname:
        return f"--url: {options.url!r} is no http or https address"
    if not re.fullmatch(r"[\x20-\x7e]*", options.authorization):
        return "--authorization holds a character that a header cannot carry"
    return None


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def positive_number(text: str) -> float:
    if (number := float(text)) <= 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return number


def not_negative(text: str) -> float:
    if (number := float(text)) < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number


def share(text: str) -> float:
    if not 0 <= (number := float(text)) <= 1:
        raise argparse.ArgumentTypeError("must be between 0 and 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
