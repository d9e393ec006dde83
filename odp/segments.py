"""The list of real-time audiences of an account."""

from odp.client import Client
from odp.outcomes import Answer, Outcome
from odp.paths import SEGMENTS


def ids(client: Client, *, seconds: float) -> frozenset[str] | Answer:
    """The ids of all real-time audiences, or an ``Answer`` when ODP didn't say.

    Documented: ``{"segment_ids": [...]}``.
    """
    answer = client.call("GET", SEGMENTS, seconds=seconds)
    named = answer.json.get("segment_ids") if isinstance(answer.json, dict) else None
    if answer.outcome is not Outcome.DELIVERED or not isinstance(named, list):
        return answer
    return frozenset(str(each) for each in named)
