"""Experiments that only read: the shape of errors, the rights of keys, and the audiences that exist already."""

from collections.abc import Iterator
from typing import Any

import msgspec

from audiences.learning.experiments import Experiment, Found, NotAnswered, Setting, Stopped, plain_name, shape
from audiences.learning.lab import FIELD, REQUEST_SECONDS, Lab, is_taken
from odp import definitions, paths, segments

PREFIX = "lytics_"
MOST_READ = 5


def _segment_errors(lab: Lab) -> Iterator[Found]:
    answer = lab.call("GET", f"{paths.SEGMENTS}/{lab.missing}")
    if is_taken(answer):
        raise NotAnswered(f"ODP answered {answer.status} to an audience that doesn't exist")
    names = answer.json.keys() if isinstance(answer.json, dict) else ()
    kind = "titled" if "title" in names else "grpc" if "code" in names else "other"
    yield Found("segment_errors", kind, f"{answer.status} {shape(answer.json)}")


def _insufficient_key(lab: Lab) -> Iterator[Found]:
    if lab.public_client is None:
        raise NotAnswered("The key has no public part")
    answer = lab.public_client.call("GET", paths.SEGMENTS, seconds=REQUEST_SECONDS)
    yield Found("insufficient_key", str(answer.status or ""), f"{answer.status} {shape(answer.json)}")


def _unreadable_body(lab: Lab) -> Iterator[Found]:
    answer = lab.client.call("POST", paths.PROFILES, body=b"[{", seconds=REQUEST_SECONDS)
    if answer.status is None:
        raise NotAnswered(answer.reason)
    yield Found("unreadable_body", str(answer.status), f"{answer.status} {shape(answer.json)}")


def _existing_audiences(lab: Lab) -> Iterator[Found]:
    """What the hosted app, or a person, has made. Ids and values stay out of the evidence: they name audiences."""
    listed = segments.ids(lab.client, seconds=REQUEST_SECONDS)
    if not isinstance(listed, frozenset):
        raise Stopped(f"ODP answered {listed.status} to listing audiences")
    others = sorted(each for each in listed if each.startswith(PREFIX) and not _is_known(lab, each))
    read = [(each, _definition(lab, each)) for each in others[:MOST_READ]]
    kinds = sorted({_kind(each, definition) for each, definition in read if definition})
    evidence = f"{len(others)} audiences named {PREFIX}… are not of this service, and {len(read)} of them were read"
    shapes = sorted({shape(definition) for _, definition in read if definition})
    yield Found("existing_audiences", ", ".join(kinds) or "none", "; ".join([evidence, *shapes]))
    for each, definition in read:
        if isinstance(definition, dict) and len(definition) == 1 and _kind(each, definition) == "passthrough":
            yield _passthrough_key(each, definition)
            return
    raise NotAnswered(f"none of the {len(read)} existing audiences that were read is a passthrough audience")


def _passthrough_key(segment: str, definition: dict[str, Any]) -> Found:
    """A definition that names its audience can't be the setting, which is one for all audiences."""
    (key,), text = definition, msgspec.json.encode(definition).decode()
    setting = Setting("environment", "ODP_PASSTHROUGH_DEFINITION", text, shared=shape(definition))
    names_itself = segment in text
    evidence = f"an existing audience's definition{' names the audience' if names_itself else ''}: {shape(definition)}"
    return Found("passthrough_key", plain_name(key), evidence, None if names_itself else setting)


def _is_known(lab: Lab, segment: str) -> bool:
    return segment in lab.ours or segment in lab.segments or segment.startswith(FIELD)


def _definition(lab: Lab, segment: str) -> Any:
    answer = lab.call("GET", f"{paths.SEGMENTS}/{segment}")
    return answer.json.get("definition") if is_taken(answer) and isinstance(answer.json, dict) else None


def _kind(segment: str, definition: Any) -> str:
    if definitions.same(definition, definitions.over(definitions.field_is_true(segment))):
        return "attribute"
    if definitions.same(definition, definitions.over(definitions.is_list_member(segment))):
        return "list"
    words = shape(definition)
    if "root_condition" not in words and "rootCondition" not in words:
        return "passthrough"
    return "another"


EXPERIMENTS = (
    Experiment(
        {
            "existing_audiences": "How are existing lytics_… audiences defined?",
            "passthrough_key": "Which member of a definition makes a passthrough audience?",
        },
        _existing_audiences,
    ),
    Experiment({"segment_errors": "What do errors of the segments API look like?"}, _segment_errors),
    Experiment({"insufficient_key": "How is a key without the right answered?"}, _insufficient_key),
    Experiment({"unreadable_body": "How is a body answered that isn't JSON?"}, _unreadable_body),
)
