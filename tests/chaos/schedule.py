"""The order of the faults, drawn from the seed before the run begins, so that a seed always gives the same order."""

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from tests.chaos.faults import FAULTS, KILLS, OTHERS

# Kills of the cheap kinds are most of them; what stops the whole house at once comes less often.
WEIGHTS = {"worker": 5, "web_worker": 2, "backend_ended": 2}


@dataclass(frozen=True)
class Step:
    pause: float
    fault: str


def drawn(*, kills: int, others: int, gap: float, dice: Random) -> list[Step]:
    """``kills`` in the given mix and each of the other faults ``others`` times, in a random order."""
    names = [name for name in KILLS for _ in range(WEIGHTS.get(name, 1))]
    # Each kind at least once, if there are enough faults.
    chosen = [*KILLS, *dice.choices(names, k=kills)][:kills] + OTHERS * others
    dice.shuffle(chosen)
    return timed(chosen, gap=gap, dice=dice)


def timed(names: Iterable[str], *, gap: float, dice: Random) -> list[Step]:
    return [Step(gap * dice.uniform(0.6, 1.4), name) for name in names]


def seconds(steps: Iterable[Step]) -> float:
    """About how long it takes."""
    return sum(step.pause + FAULTS[step.fault].seconds for step in steps)
