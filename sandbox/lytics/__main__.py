"""`python -m sandbox.lytics`: send a stream of Lytics messages and print the memberships that must result."""

import argparse
import json
import signal
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from time import monotonic

from sandbox.lytics import report
from sandbox.lytics.account import Account
from sandbox.lytics.audiences import audiences
from sandbox.lytics.calls import Call, calls
from sandbox.lytics.model import Memberships
from sandbox.lytics.options import parse
from sandbox.lytics.progress import Progress
from sandbox.lytics.sender import Job, Sender, Tally
from sandbox.lytics.stream import Message, Plan, Stream

INTERRUPTED = "interrupted before everything was sent"


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    plan = planned(options)
    expected = Memberships(plan.identifier_field)
    progress = Progress(style=options.progress, total=plan.events)
    job = Job(retry_scale=options.retry_scale, notice=progress.notice)
    messages = watched(Stream(plan), expected)
    if options.state:
        try:
            account = Account(options.state)
        except sqlite3.Error as problem:
            print(f"{options.state} can't be used as --state: {problem}", file=sys.stderr)
            return 1
        messages = account.recorded(messages, plan.identifier_field)
    began = monotonic()
    try:
        if options.dry_run:
            exhaust(messages)
        else:
            send(messages, options, job, progress)
    except KeyboardInterrupt:
        job.fail(INTERRUPTED)
    seconds = monotonic() - began

    # The expected memberships hold for the whole stream only, so a failed job writes no file.
    file = None if job.failed else options.memberships
    if file:
        report.write_memberships(file, plan.audiences, expected)
    facts = report.summary(
        events=plan.events, tally=job.tally, seconds=seconds, named=plan.audiences, expected=expected, file=file
    )
    # Flush stdout first: where both streams go to one file, the sentence on stderr has to be the last line.
    print(json.dumps(facts) if options.json else report.table(facts), flush=True)
    return verdict(job.failed, job.tally)


def planned(options: argparse.Namespace) -> Plan:
    return Plan(
        events=options.events,
        audiences=audiences(how_many=options.audiences, seed=options.seed, awkward=options.slugs == "awkward"),
        seed=options.seed,
        customers=options.customers,
        identifier_field=options.identifier_field,
        array_identifiers=options.array_identifiers,
        numeric_identifiers=options.numeric_identifiers,
        full_profiles=options.full_profiles,
        cloudevents=options.cloudevents,
        start=options.start,
    )


def send(messages: Iterable[Message], options: argparse.Namespace, job: Job, progress: Progress) -> None:
    def done(call: Call) -> None:
        progress.advance(0 if call.repeated else call.events)

    sender = Sender(url=options.url, authorization=options.authorization, job=job, timeout=options.timeout, done=done)
    stream = calls(
        messages,
        batch=options.batch,
        late=options.late,
        repeat=options.repeat,
        seed=options.seed,
        rate=options.rate,
    )
    try:
        sender.send(stream, callers=options.callers, rate=options.rate)
    finally:
        progress.finish()


def watched(messages: Iterable[Message], expected: Memberships) -> Iterator[Message]:
    """Fold each message once, when it is created: repeated and late calls must not change the expected result."""
    for message in messages:
        expected.see(message)
        yield message


def exhaust(messages: Iterator[Message]) -> None:
    for _ in messages:
        pass


def verdict(failed: str, tally: Tally) -> int:
    if failed == INTERRUPTED:
        print(f"{INTERRUPTED.capitalize()}.", file=sys.stderr)
        return 130
    if failed:
        print(f"The job has failed: {failed}. Lytics would leave it so until someone restarts it.", file=sys.stderr)
    elif tally.omitted:
        print(f"{tally.omitted:,} calls were given up for good, and their events are lost.", file=sys.stderr)
    return 1 if failed or tally.omitted else 0


if __name__ == "__main__":
    # A shell makes its background processes ignore SIGINT (Ctrl-C). Restore the default.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
