"""Experiments that write profiles of invented customers: new fields, delays, bad items and large bodies."""

from collections.abc import Iterator
from typing import Any

import msgspec

from audiences.learning.experiments import Experiment, Found, NotAnswered, Setting, Stopped, shape
from audiences.learning.lab import MARK, REQUEST_SECONDS, Lab, is_taken
from odp import graphql, paths
from odp.mechanisms import Attribute
from odp.outcomes import Answer

_FIELDS = "/v3/schema/objects/customers/fields"
FIRST_BODY_BYTES = 1 << 16
# Padding beyond this proves nothing that a delivery needs: 500 items with long identifiers have 350 KB.
LARGEST_BODY_BYTES = 1 << 20
# Halvings between the largest body taken and the smallest refused one.
HALVINGS = 3
# Bytes of an item with an identifier of 256 bytes under both names, and one audience.
ITEM_BYTES = 700


def _unknown_field(lab: Lab) -> Iterator[Found]:
    """A write with the field before it is made. An account that makes it leaves nothing else behind."""
    if lab.field_was_there:
        raise NotAnswered(f"The field {lab.field} is there from an earlier run. Name another one with --field")
    answer = lab.write(lab.item("unknown", False))
    if not is_taken(answer):
        yield Found("unknown_field", "refuse", f"{answer.status} {shape(answer.json)}")
        return
    took = lab.seconds_until(lambda: _field_status(lab) != 404, at_most=lab.settling)
    if took is None:
        yield Found("unknown_field", "drop", f"{answer.status}, and no such field {lab.settling:.0f} s later")
    else:
        lab.field_was_there = True
        yield Found("unknown_field", "create", f"{answer.status}, and the field exists {took:.0f} s later")


def _accepted_answer(answer: Answer) -> Found:
    if not is_taken(answer):
        return Found("accepted_answer", "", "the first profile wasn't accepted")
    if not answer.text.strip():
        setting = Setting("environment", "ODP_EMPTY_IS_ACCEPTED", "true")
        return Found("accepted_answer", "empty", f"{answer.status} without a body", setting)
    return Found("accepted_answer", str(answer.status), f"{answer.status} {shape(answer.json)}")


def _field_status(lab: Lab) -> int | None:
    return lab.call("GET", f"{_FIELDS}/{lab.field}").status


def _new_field(lab: Lab) -> Iterator[Found]:
    began = lab.clock.now()
    made = Attribute().ensure(lab.client, lab.field, MARK, seconds=REQUEST_SECONDS)
    if made is not None:
        status = made.status if isinstance(made, Answer) else "a refusal"
        raise Stopped(f"The field and the audience {lab.field} could not be made: ODP answered {status}")
    lab.left.append(f"the customer field {lab.field}")
    yield Found("read_status", str(_field_status(lab)), "the status of reading a field")
    refused, accepted_after = 0, None
    while lab.clock.now() - began <= lab.patience:
        answer = lab.write(lab.item("field", True))
        if not is_taken(answer):
            refused += 1
            continue
        accepted_after = lab.clock.now() - began if accepted_after is None else accepted_after
        if lab.is_shown("field"):
            shown_after = lab.clock.now() - began
            break
    else:
        raise NotAnswered(f"no write to the new field showed within {lab.patience:.0f} s")
    if lab.field_was_there:
        raise NotAnswered("The field was there before the audience. Name another one with --field")
    seconds = accepted_after if refused else shown_after
    evidence = f"{refused} writes refused, the first accepted after {accepted_after:.0f} s, shown after "
    yield Found("field_delay_seconds", f"{seconds:.0f}", f"{evidence}{shown_after:.0f} s")


def _visibility(lab: Lab) -> Iterator[Found]:
    taken = lab.write(lab.item("visible", True))
    yield _accepted_answer(taken)
    lab.delay = lab.seconds_until(lambda: lab.is_in("visible"))
    lab.attribute_shows = lab.delay is not None
    if lab.delay is None:
        yield Found("visible_seconds", "never", f"{taken.status}, and not shown within {lab.patience:.0f} s")
        return
    yield Found("visible_seconds", f"{lab.delay:.0f}", "under fs_user_id and web_user_id, over GraphQL")
    lab.must_write(lab.item("visible", False))
    gone = lab.seconds_until(lambda: not lab.is_in("visible"))
    yield Found("gone_seconds", "never" if gone is None else f"{gone:.0f}", "the same customer, after the exit")


def _bad_item(lab: Lab) -> Iterator[Found]:
    """Two good profiles and, at position 2, one that names no customer."""
    bad = {"attributes": {lab.field: True}}
    answer = lab.write(lab.item("good1", True), lab.item("good2", True), bad)
    invalids = _invalids(answer.json)
    keys = (
        [name for name, value in invalids[0].items() if value == 2 and not isinstance(value, bool)] if invalids else []
    )
    evidence = f"{answer.status} {shape(answer.json)}"
    if invalids or not is_taken(answer):
        yield Found("bad_items", "named" if keys else "bare", evidence)
    if keys:
        yield Found("invalids_key", keys[0], evidence)
    lab.must_show()
    took = lab.seconds_until(lambda: lab.is_in("good1"), at_most=lab.settling)
    shown = f"shown after {took:.0f} s" if took is not None else f"not shown within {lab.settling:.0f} s"
    applied = f"{answer.status}; good items {shown}"
    if took is not None:
        yield Found("batch_rejection", "drop" if is_taken(answer) and not invalids else "partial", applied)
    elif is_taken(answer):
        raise NotAnswered("the batch was accepted, and its good items don't show")
    else:
        yield Found("batch_rejection", "whole", applied)


def _invalids(body: Any) -> list[dict[str, Any]]:
    detail = body.get("detail") if isinstance(body, dict) else None
    found = detail.get("invalids") if isinstance(detail, dict) else None
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _item_without_field(lab: Lab) -> Iterator[Found]:
    who = lab.who("control")
    answer = lab.write({"attributes": {graphql.FS: who, graphql.WEB: who}})
    yield Found("item_without_field", "accepted" if is_taken(answer) else "refused", f"status {answer.status}")


def _largest_body(lab: Lab) -> Iterator[Found]:
    """One profile, padded with blanks after the JSON."""
    taken, refused, size, why = 0, 0, FIRST_BODY_BYTES, ""
    for _ in range(HALVINGS + LARGEST_BODY_BYTES.bit_length() - FIRST_BODY_BYTES.bit_length() + 1):
        answer = _padded(lab, size)
        if is_taken(answer):
            taken = size
        elif answer.status not in (None, 400, 413):
            raise NotAnswered(f"ODP answered {answer.status} to {size:,} bytes")
        else:
            refused, why = size, f"{size:,} bytes: {answer.status or 'no answer'}"
        if not refused and size >= LARGEST_BODY_BYTES:
            break
        size = (taken + refused) // 2 if refused else 2 * size
    if not taken:
        raise NotAnswered(f"ODP takes no padded body, {why}")
    evidence = why or "larger ones were not tried"
    fitting = max(1, taken // ITEM_BYTES)
    setting = Setting("install", "batch_size", str(fitting)) if refused and fitting < lab.batch_size else None
    yield Found("max_body_bytes", str(taken), f"the largest body taken; {evidence}", setting)


def _padded(lab: Lab, size: int) -> Answer:
    body = msgspec.json.encode([lab.item("body", False)])
    return lab.client.call("POST", paths.PROFILES, body=body.ljust(size), seconds=REQUEST_SECONDS)


EXPERIMENTS = (
    Experiment(
        {
            "unknown_field": "A profile with a field that doesn't exist: is it refused, does it lose the field (drop), "
            "or is the field made (create)?",
        },
        _unknown_field,
    ),
    Experiment(
        {
            "read_status": "Which status has a successful read?",
            "field_delay_seconds": "How many seconds after it was made may profiles use a new field?",
        },
        _new_field,
    ),
    Experiment(
        {
            "accepted_answer": "What does the response to an accepted write look like?",
            "visible_seconds": "How many seconds until a written membership shows?",
            "gone_seconds": "How many seconds until an ended membership is gone?",
        },
        _visibility,
    ),
    Experiment(
        {
            "batch_rejection": "Does one bad item reject the whole request, only itself (partial), or is it left out "
            "behind a 202 (drop)?",
            "bad_items": "Does the error name the bad items?",
            "invalids_key": "Under which name is the position of a bad item?",
        },
        _bad_item,
    ),
    Experiment({"item_without_field": "Is a profile without any field accepted?"}, _item_without_field),
    Experiment({"max_body_bytes": "How large may a body be?"}, _largest_body),
)
