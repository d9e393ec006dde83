"""Experiments with events and lists. ODP can't delete an event or a list again."""

import time
from collections.abc import Iterator
from typing import Any

from audiences.learning.experiments import Experiment, Found, NotAnswered
from audiences.learning.lab import MARK, Lab, is_taken
from odp import definitions, graphql, paths

HOUR = 3600


def _event_action(lab: Lab) -> Iterator[Found]:
    event = {
        "type": lab.field,
        "identifiers": {graphql.FS: lab.who("event")},
        "data": {"active_event": False},
    }
    answer = lab.call("POST", paths.EVENTS, [event])
    if is_taken(answer):
        yield Found("event_action", "optional", f"status {answer.status} without an action")
        return
    again = lab.call("POST", paths.EVENTS, [{**event, "action": "learn"}])
    if not is_taken(again):
        raise NotAnswered(f"ODP answered {again.status} to an event with an action too")
    yield Found("event_action", "required", f"status {answer.status} without an action, {again.status} with one")


def _passthrough_order(lab: Lab) -> Iterator[Found]:
    """An exit that happened an hour before the entry arrives after it."""
    if lab.passthrough_definition is None:
        raise NotAnswered("How to make a passthrough audience is not published. Set ODP_PASSTHROUGH_DEFINITION first")
    body = {"description": MARK, "metadata": {"display_name": MARK}, "definition": lab.passthrough_definition}
    segment = lab.passthrough_segment
    if not is_taken(answer := lab.call("PUT", f"{paths.SEGMENTS}/{segment}", body)):
        raise NotAnswered(f"ODP answered {answer.status} to making the passthrough audience")
    at, customer = int(time.time()), (graphql.FS, lab.who("passthrough"))
    _passthrough(lab, customer, "qualify", at)
    took = lab.seconds_until(lambda: lab.inside([customer], segment)[0])
    if took is None:
        raise NotAnswered("the entry was accepted and doesn't show")
    _passthrough(lab, customer, "disqualify", at - HOUR)
    # An event may take longer to show than the write of an attribute, from which ``lab.settling`` follows.
    at_most = max(lab.settling, min(lab.patience, 3 * took))
    gone = lab.seconds_until(lambda: not lab.inside([customer], segment)[0], at_most=at_most)
    order = "ts" if gone is None else "arrival"
    _passthrough(lab, customer, "disqualify", at + 1)
    yield Found(
        "passthrough_order", order, f"an older exit that came later {'did not count' if gone is None else 'counted'}"
    )


def _passthrough(lab: Lab, customer: graphql.Customer, action: str, ts: int) -> None:
    data = {"audience_id": lab.passthrough_segment, "ts": ts, "active_event": False}
    event = {"type": "passthrough", "action": action, "identifiers": dict([customer]), "data": data}
    if not is_taken(answer := lab.call("POST", paths.EVENTS, [event])):
        raise NotAnswered(f"ODP answered {answer.status} to a passthrough event. It is off until ODP turns it on")


def _lists(lab: Lab) -> Iterator[Found]:
    if not lab.with_lists:
        raise NotAnswered("A list can't be deleted again. Add --lists to make one")
    made = lab.call("POST", paths.LISTS, {"name": lab.field})
    body = made.json if isinstance(made.json, dict) else {}
    if is_taken(made):
        lab.left.append(f"the list {lab.field}")
        kind = "created" if isinstance(body.get("created"), dict) else "flat" if "list_id" in body else "other"
        yield Found("list_created_body", kind, _status(made.status))
    customer = {graphql.FS: lab.who("list"), graphql.WEB: lab.who("list")}
    answer = lab.call("POST", paths.LIST_SUBSCRIPTIONS, [{"list_id": lab.field, **customer, "subscribed": True}])
    if not is_taken(answer):
        yield Found("list_identifiers", "messaging", f"status {answer.status} to fs_user_id and web_user_id")
        return
    yield Found("list_identifiers", "any", f"status {answer.status} to fs_user_id and web_user_id")
    definition: dict[str, Any] = definitions.over(definitions.is_list_member(lab.field))
    segment = {"description": MARK, "metadata": {"display_name": MARK}, "definition": definition}
    if not is_taken(put := lab.call("PUT", f"{paths.SEGMENTS}/{lab.list_segment}", segment)):
        raise NotAnswered(f"ODP answered {put.status} to the audience over the list")
    lab.list_shows = lab.seconds_until(lambda: lab.is_in("list", lab.list_segment)) is not None


def _status(status: int | None) -> str:
    return f"status {status}"


def _consent(lab: Lab) -> Iterator[Found]:
    """Seen only where the Api app's default consent is Opted Out: it can't be read."""
    if lab.attribute_shows is None:
        raise NotAnswered("no membership was tried")
    if not lab.attribute_shows:
        evidence = "writes are accepted and never show. Check Api app consent, and that key and host are of one account"
        yield Found("consent_effect", "everything", evidence)
    elif lab.list_shows is None:
        raise NotAnswered("Attributes show. Whether lists do wasn't tried")
    elif lab.list_shows:
        yield Found("consent_effect", "none", "attributes and lists both show")
    else:
        yield Found("consent_effect", "lists", "attributes show, a list subscription doesn't")


EXPERIMENTS = (
    Experiment({"event_action": "Must an event have an action?"}, _event_action),
    Experiment(
        {"passthrough_order": "Passthrough events: does the newest ts count, or the last arrival?"}, _passthrough_order
    ),
    Experiment(
        {
            "list_created_body": "What does the response to a new list look like?",
            "list_identifiers": "Does subscribing take fs_user_id and web_user_id, or messaging identifiers only?",
        },
        _lists,
    ),
    Experiment({"consent_effect": "Does Api app consent keep writes from having an effect?"}, _consent),
)
