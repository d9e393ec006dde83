"""What a step of an audit gives back."""

from dataclasses import dataclass, field
from typing import Any


class Ended(Exception):
    """The audit can't go on; ``problem`` says why, for a person."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


class Wait:
    """Seconds from which on a worker does something else meanwhile."""

    LONG = 5.0


@dataclass(frozen=True)
class Step:
    """Columns of the Audit to store, and the seconds from the step's beginning after which the next one may follow."""

    changes: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
