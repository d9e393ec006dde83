"""All experiments in their order, and the run of them: what one makes, a later one uses."""

from collections.abc import Callable

from audiences.learning import cleaning, events, identifiers, lytics_account, querying, reading, writing
from audiences.learning.experiments import Experiment, Found, NotAnswered, Stopped
from audiences.learning.lab import Lab

EXPERIMENTS: tuple[Experiment, ...] = (
    *reading.EXPERIMENTS,
    *writing.EXPERIMENTS,
    *querying.EXPERIMENTS,
    *identifiers.EXPERIMENTS,
    *events.EXPERIMENTS,
    *lytics_account.EXPERIMENTS,
)
QUESTIONS = {name: words for each in EXPERIMENTS for name, words in each.questions.items()}


def run(lab: Lab, note: Callable[[Found], None]) -> None:
    """Run all experiments and pass each answer to ``note``.

    Cleans up also when an experiment raises, or the process is interrupted; ``lab.problems`` has what couldn't be
    removed. Raises ``Stopped`` if the experiments can't begin.
    """
    cleaning.begin(lab)
    try:
        _run_all(lab, note)
    finally:
        lab.problems += cleaning.clean_up(lab)


def _run_all(lab: Lab, note: Callable[[Found], None]) -> None:
    stopped = ""
    for each in EXPERIMENTS:
        open_questions, why = dict(each.questions), "the experiment gave no answer"
        try:
            for found in each.run(lab) if not stopped else ():
                open_questions.pop(found.question)
                note(found)
        except NotAnswered as reason:
            why = str(reason)
        except Stopped as reason:
            stopped = f"stopped: {reason}"
        for question in open_questions:
            note(Found(question, "", stopped or why))
