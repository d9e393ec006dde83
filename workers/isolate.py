"""Which of the changes in a refused request ODP does not take, found in few requests. Pure: no HTTP, no database.

ODP refuses a request as a whole. When it names the bad items, those are set apart and the rest goes again. When it
doesn't, the request is halved: a half that is refused holds a bad one, a half that is taken is delivered. One bad
item in 500 costs nine such requests and one for what was held back meanwhile.

Two things look like a bad item and aren't. A request that is too large makes its smaller halves succeed, so what was
found guilty by elimination alone is sent by itself when size could explain it. And an audience that ODP takes
nothing of is not a heap of bad customers: a request that names one of them and no audience tells the two apart. One
refusal alone never stops an audience of which ODP has taken something before: then it is that one change.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from odp.mechanisms import Change
from odp.outcomes import Answer, Outcome

Group = tuple[Change, ...]

# Refused customers of one audience, none of it taken, after which it is the audience even if a control was refused
# too: then the whole account is set up otherwise than we are, and a person mends that in one place.
BLOCK_AFTER = 50
# The same where no control is possible.
BLOCK_AFTER_WITHOUT_CONTROL = 3


@dataclass(frozen=True)
class Part:
    """What goes into the next request: groups of changes, or a control item for one change."""

    groups: tuple[Group, ...]
    control: Change | None = None


class Isolation:
    """Feed it the answer to each ``next()`` until that is None; then every change is accepted, refused or blocked.

    ``has_control`` says whether the mechanism can name a customer without an audience; ``items_per_group`` how many
    items it makes of a group, because ODP counts items when it names the bad ones; ``was_taken`` whether ODP has taken
    anything of a lane before. ``doubtful`` groups go last and by themselves: ODP refused something of those customers
    before, and they would spoil the request of all the others.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        has_control: Callable[[Change], bool],
        items_per_group: int = 1,
        was_taken: Callable[[int], bool] = lambda lane: False,
        doubtful: Sequence[Group] = (),
    ) -> None:
        self.accepted: list[Change] = []
        self.refused: dict[Change, str] = {}
        self.blocked: dict[int, str] = {}
        self._has_control = has_control
        self._items_per_group = items_per_group
        self._was_taken = was_taken
        self._rest = list(groups)
        self._doubtful = list(doubtful)
        self._suspects: list[Group] = []
        self._limit = max(1, len(groups), len(doubtful))
        self._words = ""
        self._proven = False
        # The size of the request whose refusal made the suspects; and whom elimination alone found guilty of it.
        self._refused_size = 0
        self._unproven: dict[Change, int] = {}
        self._doubted: set[Change] = set()
        self._largest_taken = 0
        self._size_matters = False
        self._taken_of: Counter[int] = Counter()
        self._cleared: set[int] = set()
        self._part = Part(())

    @property
    def learned_limit(self) -> int | None:
        """How many groups ODP took in one request, if it turned out to refuse requests for their size."""
        return self._largest_taken or None if self._size_matters else None

    def next(self) -> Part | None:
        """The next request, or None when nothing is left to find out."""
        self._narrow()
        if not (self._suspects or self._rest):
            self._rest, self._doubtful = self._doubtful, []
        if not (self._suspects or self._rest):
            self._doubt()
        self._part = self._control() or self._halve() or Part(tuple(self._rest[: self._limit]))
        return self._part if self._part.groups or self._part.control else None

    def take(self, answer: Answer) -> None:
        """What came back for the last ``next()``: delivered or refused, nothing else tells anything about items."""
        part = self._part
        if part.control is not None:
            self._take_control(part.control, answer)
        elif answer.outcome is Outcome.DELIVERED:
            self._take_accepted(part)
        elif answer.too_large and len(part.groups) > 1:
            self._limit, self._size_matters = len(part.groups) // 2, True
            self._suspects, self._rest = [], [*self._suspects, *self._rest]
        else:
            self._take_refused(part, answer)

    def stop(self) -> None:
        """No more answers will come. Whose guilt was still in question goes free, to be asked again another time."""
        self.refused = {
            change: words
            for change, words in self.refused.items()
            if not self._may_be_size(self._unproven.get(change, 0))
            and (self._taken_of[change.lane] or change.lane in self._cleared)
        }

    # --- the answers -----------------------------------------------------------------------------------------

    def _take_accepted(self, part: Part) -> None:
        self._largest_taken = max(self._largest_taken, len(part.groups))
        taken = [change for group in part.groups for change in group]
        self.accepted.extend(taken)
        self._taken_of.update([change.lane for change in taken])
        if self._doubted and not self._doubted.isdisjoint(taken):
            self._size_matters = True
        if self._suspects:
            self._suspects, self._proven = self._suspects[len(part.groups) :], False
            return
        self._rest = self._rest[len(part.groups) :]

    def _take_refused(self, part: Part, answer: Answer) -> None:
        self._words = answer.reason
        held_back = [*self._suspects, *self._rest][len(part.groups) :]
        named = {position // self._items_per_group: words for position, words in answer.named.items()}
        if any(position < len(part.groups) for position in named):
            self._set_apart(part, named, held_back)
            return
        self._refused_size = len(part.groups)
        self._rest, self._suspects, self._proven = held_back, list(part.groups), True

    def _set_apart(self, part: Part, named: dict[int, str], held_back: list[Group]) -> None:
        again: list[Group] = []
        for position, group in enumerate(part.groups):
            if position not in named:
                again.append(group)
            elif len(group) == 1:
                self.refused[group[0]] = named[position]
            else:  # several audiences of one customer: only one of them may be at fault
                again.extend((change,) for change in group)
        self._suspects, self._rest = [], [*again, *held_back]

    def _take_control(self, change: Change, answer: Answer) -> None:
        if answer.outcome is Outcome.DELIVERED:
            self._block(change.lane)
        else:
            self._cleared.add(change.lane)

    # --- what they mean --------------------------------------------------------------------------------------

    def _narrow(self) -> None:
        """Down to one suspect: it is the one; or, when it is a customer in several audiences, one of those is."""
        while len(self._suspects) == 1:
            (group,) = self._suspects
            if len(group) > 1:
                self._suspects, self._proven = [(change,) for change in group], False
                return
            self._convict(group[0])

    def _convict(self, change: Change) -> None:
        self.refused[change] = self._words
        self._suspects = []
        if not self._proven:
            if any(map(self._may_be_size, self._unproven.values())):
                self._limit = max(1, self._largest_taken)
            self._unproven[change] = self._refused_size

    def _may_be_size(self, refused_size: int) -> bool:
        """Whether a request with so many groups can have been refused for nothing but its size."""
        return refused_size > max(1, self._largest_taken)

    def _doubt(self) -> None:
        """Send those found guilty by elimination by themselves. If they are taken, it was the size."""
        doubted = [change for change, size in self._unproven.items() if self._may_be_size(size)]
        self._unproven = {}
        if doubted:
            # Small enough, so that this time the size explains nothing.
            self._limit = max(1, min(self._limit, self._largest_taken))
            self._doubted.update(doubted)
            self._rest = [(change,) for change in doubted]
            for change in doubted:
                del self.refused[change]

    def _halve(self) -> Part | None:
        if len(self._suspects) < 2:
            return None
        return Part(tuple(self._suspects[: min(len(self._suspects) // 2, self._limit)]))

    def _control(self) -> Part | None:
        """A question about an audience of which nothing was taken, once it has two refusals or all is over."""
        over = not (self._suspects or self._rest or self._doubtful)
        certain = [change for change in self.refused if not self._may_be_size(self._unproven.get(change, 0))]
        for lane, count in Counter(change.lane for change in certain).items():
            if self._taken_of[lane] or not (over or count > 1):
                continue
            if count == 1 and self._was_taken(lane):
                continue
            change = next(change for change in certain if change.lane == lane)
            if self._has_control(change) and lane not in self._cleared:
                return Part((), control=change)
            if count >= (BLOCK_AFTER if self._has_control(change) else BLOCK_AFTER_WITHOUT_CONTROL):
                self._block(lane)
                return self._control()
        return None

    def _block(self, lane: int) -> None:
        """ODP takes nothing of this audience: its changes wait, nobody's item is blamed."""
        self.blocked[lane] = next(words for change, words in self.refused.items() if change.lane == lane)
        self.refused = {change: words for change, words in self.refused.items() if change.lane != lane}
        self._unproven = {change: size for change, size in self._unproven.items() if change.lane != lane}
        # Who else was suspected, was so because of what has just been taken out.
        self._suspects, self._rest = [], _without(lane, [*self._suspects, *self._rest])
        self._doubtful = _without(lane, self._doubtful)


def _without(lane: int, groups: Sequence[Group]) -> list[Group]:
    left = (tuple(change for change in group if change.lane != lane) for group in groups)
    return [group for group in left if group]
