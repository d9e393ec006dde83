"""Experiments over GraphQL, and with the segments API on the audience of the experiments."""

from collections.abc import Iterator
from typing import Any

from audiences.learning.experiments import Experiment, Found, NotAnswered
from audiences.learning.lab import MARK, REQUEST_SECONDS, Lab, is_taken
from odp import definitions, graphql, paths
from odp.client import Client
from odp.outcomes import Answer, Outcome


def _unknown_segment(lab: Lab) -> Iterator[Found]:
    customers = [(graphql.FS, lab.who("visible"))]
    found = graphql.ask(lab.client, customers=customers, odp_ids=[lab.field, lab.missing], seconds=REQUEST_SECONDS)
    if found.answer.status is None or found.answer.outcome not in (Outcome.DELIVERED, Outcome.REJECTED):
        raise NotAnswered(f"ODP answered {found.answer.status}")
    yield Found("unknown_segment", "ignore" if found.succeeded else "error", f"status {found.answer.status}")


def _scalars(lab: Lab) -> Iterator[Found]:
    """Read the field of a customer who has left the audience, so that its value is false."""
    lab.must_show()
    value = _value(_read_field(lab, lab.client), lab.field)
    if not isinstance(value, str | bool):
        raise NotAnswered("the field of the test customer can't be read")
    yield Found("graphql_scalars", "strings" if isinstance(value, str) else "typed", f"false came as {value!r}")


def _public_key(lab: Lab) -> Iterator[Found]:
    lab.must_show()
    if lab.public_client is None:
        raise NotAnswered("The key has no public part")
    answer = _read_field(lab, lab.public_client)
    if answer.status in (401, 403):
        yield Found("graphql_key", "private", f"the public key got {answer.status}")
        raise NotAnswered("GraphQL doesn't accept the public key")
    if not is_taken(answer):
        raise NotAnswered(f"ODP answered {answer.status}")
    yield Found("graphql_key", "public", f"the public key got {answer.status}")
    if isinstance(answer.json, dict) and answer.json.get("errors"):
        yield Found("private_fields", "error", "an error beside the data")
    else:
        value = _value(answer, lab.field)
        yield Found("private_fields", "null" if value is None else "readable", "the public key read a private field")


def _read_field(lab: Lab, client: Client) -> Answer:
    query = f"query($who: String) {{ customer({graphql.FS}: $who) {{ {lab.field} }} }}"
    return lab.query(client, query, who=lab.who("visible"))


def _value(answer: Answer, name: str) -> Any:
    data = answer.json.get("data") if isinstance(answer.json, dict) else None
    customer = data.get("customer") if isinstance(data, dict) else None
    return customer.get(name) if isinstance(customer, dict) else None


def _replacing(lab: Lab) -> Iterator[Found]:
    path, plain = f"{paths.SEGMENTS}/{lab.field}", {"display_name": MARK}
    for metadata in ({**plain, "learned": "yes"}, plain):
        if not is_taken(answer := lab.call("PUT", path, _segment(lab, metadata))):
            raise NotAnswered(f"ODP answered {answer.status} to replacing the audience")
    found = lab.call("GET", path).json
    shown = found.get("metadata") if isinstance(found, dict) else None
    if isinstance(shown, dict):
        kept = "learned" in shown
        evidence = f"a name that the second write left out is {'still there' if kept else 'gone'}"
        yield Found("metadata_on_replace", "merge" if kept else "replace", evidence)
    again = lab.call("POST", path, _segment(lab, plain))
    yield Found("segment_post_existing", "replace" if is_taken(again) else "refuse", f"status {again.status}")


def _segment(lab: Lab, metadata: dict[str, str]) -> dict[str, Any]:
    definition = definitions.over(definitions.field_is_true(lab.field))
    return {"description": MARK, "metadata": metadata, "definition": definition}


EXPERIMENTS = (
    Experiment(
        {"unknown_segment": "GraphQL: is an audience that doesn't exist ignored, or an error?"}, _unknown_segment
    ),
    Experiment({"graphql_scalars": "GraphQL: does a boolean field come as text or by its type?"}, _scalars),
    Experiment(
        {
            "graphql_key": "GraphQL: which is the lesser key that it accepts?",
            "private_fields": "GraphQL: what does the public key read of a private field?",
        },
        _public_key,
    ),
    Experiment(
        {
            "metadata_on_replace": "Is the metadata of a replaced audience replaced or merged?",
            "segment_post_existing": "Is POST for an audience that exists refused, or does it replace?",
        },
        _replacing,
    ),
)
