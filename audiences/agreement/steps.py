"""The result of a step of an audit."""

from dataclasses import dataclass, field
from typing import Any


class Ended(Exception):
    """The audit can't continue. ``problem`` is the reason, in words for a person."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


class Wait:
    """A wait. If it is ``LONG`` seconds or longer, the worker takes other work meanwhile."""

    LONG = 5.0


@dataclass(frozen=True)
class Step:
    """The columns of the Audit to store, and the least number of seconds from this step's start to the next step's.

    With ``forgets_scan``, the members of the scan so far are deleted in the transaction that stores the step.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    forgets_scan: bool = False
