"""Remove what experiments made, also those of a run that was killed.

Nothing is remembered between runs: the names of objects and customers follow from the field and the number of the run,
and ODP says which of them exist.
"""

from audiences.learning.experiments import NotAnswered, Stopped
from audiences.learning.lab import MARK, MOST_RUNS, Lab, is_taken
from odp import graphql, paths

_FIELDS = "/v3/schema/objects/customers/fields"


def begin(lab: Lab) -> None:
    """Refuse to touch objects of others, remove leftovers, and number the run. Raises ``Stopped``."""
    lab.field_was_there = _field_is_there(lab)
    for segment in lab.segments:
        _delete(lab, segment, refuse_foreign=True)
    lab.number = _first_unused_number(lab)
    if lab.number > 1:
        lab.number -= 1
        _reset_customers(lab)
        lab.number += 1


def clean_up(lab: Lab) -> list[str]:
    """Remove what this run made; what couldn't be removed, in words."""
    problems: list[str] = []
    for what, step in (("memberships", _reset_customers), ("audiences", _delete_all)):
        try:
            step(lab)
        except (Stopped, NotAnswered) as error:
            problems.append(f"The {what} of the experiments may still be in ODP: {error}")
    return problems


def _field_is_there(lab: Lab) -> bool:
    answer = lab.call("GET", f"{_FIELDS}/{lab.field}")
    if answer.status == 404:
        return False
    found = answer.json.get("type") if isinstance(answer.json, dict) else None
    if found != "boolean":
        raise Stopped(f"The customer field {lab.field} exists and isn't boolean. Name another one with --field")
    return True


def _delete_all(lab: Lab) -> None:
    for segment in lab.segments:
        _delete(lab, segment, refuse_foreign=False)


def _delete(lab: Lab, segment: str, *, refuse_foreign: bool) -> None:
    """Delete a real-time audience if its description is the mark of the experiments."""
    answer = lab.call("GET", f"{paths.SEGMENTS}/{segment}")
    if answer.status == 404:
        return
    if not (is_taken(answer) and isinstance(answer.json, dict) and answer.json.get("description") == MARK):
        if refuse_foreign:
            raise Stopped(f"The audience {segment} isn't of these experiments. Name another field with --field")
        return
    deleted = lab.call("DELETE", f"{paths.SEGMENTS}/{segment}")
    if not is_taken(deleted) and deleted.status != 404:
        raise Stopped(f"ODP answered {deleted.status} to deleting {segment}")


def _first_unused_number(lab: Lab) -> int:
    for number in range(1, MOST_RUNS):
        lab.number = number
        if not any(lab.known(lab.everyone())):
            return number
    raise Stopped("ODP knows the test customers of each run. It may not tell known customers from others")


def _reset_customers(lab: Lab) -> None:
    """Set the field of the run's customers to false, and end their memberships of the other mechanisms.

    Only customers that ODP knows: a write would make the others.
    """
    everyone = lab.everyone()
    known = [each for each, is_known in zip(everyone, lab.known(everyone), strict=True) if is_known]
    if not known or not _field_is_there(lab):
        return
    answer = lab.write(*({"attributes": {name: value, lab.field: False}} for name, value in known))
    if not is_taken(answer):
        raise Stopped(f"ODP answered {answer.status} to resetting the test customers")
    subscribed = (graphql.FS, lab.who("list"))
    if subscribed in known:
        item = {"list_id": lab.field, graphql.FS: lab.who("list"), "subscribed": False}
        lab.call("POST", paths.LIST_SUBSCRIPTIONS, [item])
