"""Experiments about identifiers: their confidence, which decides whether profiles merge, and unseen device ids."""

from collections.abc import Iterator

from audiences.learning.experiments import Experiment, Found, NotAnswered
from audiences.learning.lab import Lab, is_taken
from odp import graphql

_QUESTIONS = {
    "fs_user_id_confidence": "Is fs_user_id a high-confidence identifier, so that it merges profiles?",
    "web_user_id_confidence": "Is web_user_id a high-confidence identifier?",
}


def _confidence(lab: Lab) -> Iterator[Found]:
    """Two records meet in a profile with an identifier of each; then the one that keeps ``w`` enters the audience.

    Records: {fs a, web w} and {fs b, web x}; they meet in {fs a, web x}. Tried twice, with the order of the records and
    of the identifiers turned: only when neither is of high confidence does the order matter.
    """
    lab.must_show()
    first, second = _record_of_w(lab, "1", is_turned=False), _record_of_w(lab, "2", is_turned=True)
    evidence = f"found on one record: {first or 'none'}; with the order turned: {second or 'none'}"
    outcomes = {"abwx": ("high", "high"), "awx": ("high", "low"), "w": ("low", "high")}
    if first == second and first in outcomes:
        fs, web = outcomes[first]
    elif {first, second} == {"awx", "w"}:
        fs, web = "low", "low"
    else:
        raise NotAnswered(f"no reading fits: {evidence}")
    yield Found("fs_user_id_confidence", fs, evidence)
    yield Found("web_user_id_confidence", web, evidence)


def _record_of_w(lab: Lab, turn: str, *, is_turned: bool) -> str:
    """Which of a, b, w and x are on the record of w after the two records have met."""
    a, b = (graphql.FS, lab.who(f"a{turn}")), (graphql.FS, lab.who(f"b{turn}"))
    w, x = (graphql.WEB, lab.who(f"w{turn}")), (graphql.WEB, lab.who(f"x{turn}"))
    records = [(b, x), (a, w)] if is_turned else [(a, w), (b, x)]
    for record in (*records, (x, a) if is_turned else (a, x)):
        lab.must_write({"attributes": {**dict(record), lab.field: False}})
        lab.settle()
    lab.must_write({"attributes": {w[0]: w[1], lab.field: True}})
    if lab.seconds_until(lambda: lab.inside([w])[0]) is None:
        raise NotAnswered("the customer never showed in the audience")
    lab.settle()
    found = lab.inside([a, b, w, x])
    return "".join(name for name, is_in in zip("abwx", found, strict=True) if is_in)


def _new_vuid(lab: Lab) -> Iterator[Found]:
    lab.must_show()
    answer = lab.write({"attributes": {"vuid": lab.vuid, lab.field: True}})
    if not is_taken(answer):
        raise NotAnswered(f"ODP answered {answer.status} to a profile with a vuid")
    took = lab.seconds_until(lambda: lab.inside([("vuid", lab.vuid)])[0], at_most=lab.settling)
    if took is None:
        yield Found("new_vuid", "ignored", f"{answer.status}, and not shown within {lab.settling:.0f} s")
    else:
        yield Found("new_vuid", "created", f"shown after {took:.0f} s")


EXPERIMENTS = (
    Experiment(_QUESTIONS, _confidence),
    Experiment({"new_vuid": "Does a profile write make a customer of a vuid that no event has named?"}, _new_vuid),
)
