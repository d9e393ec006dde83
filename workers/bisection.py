"""Bisection: find the changes for which ODP rejects a request, in few requests. Pure: no HTTP, no database.

ODP rejects a request as a whole. When the response names the bad items, they are set apart and the rest is sent again.
When it doesn't, the request is halved: a rejected half holds a bad change, an accepted half is delivered. One bad
change among 500 costs nine such requests, and one more for the changes that were held back meanwhile.

Two causes look like a bad change and aren't one:

- The request is too large, and its halves succeed. A change that was rejected by elimination is therefore sent again in
  a small request, unless ODP has accepted a request as large as the rejected one.
- ODP rejects a whole audience. A request that names a rejected customer without the audience (the probe) decides: if
  ODP accepts it, and still rejects the change, the audience is at fault. A single rejection starts no probe if ODP has
  accepted the audience before.
"""

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from odp.mechanisms import Change
from odp.outcomes import Answer, Outcome

Group = tuple[Change, ...]

# The number of rejected changes of one audience, with none accepted, after which the audience is blocked although ODP
# rejected the probe too. Then the ODP account differs from what we expect, and one correction there helps all changes.
BLOCK_AFTER = 50
# The same where the mechanism has no probe.
BLOCK_AFTER_WITHOUT_CONTROL = 3


@dataclass(frozen=True)
class Part:
    """The content of the next request: groups of changes, or a probe with the customer of one change."""

    groups: tuple[Group, ...]
    control: Change | None = None


Requests = Generator[Part, Answer, None]


class _Size:
    """The largest request size that ODP accepts, in groups, learned from its responses."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.largest_accepted = 0
        self.matters = False

    def accepted(self, groups: int) -> None:
        self.largest_accepted = max(self.largest_accepted, groups)

    def too_large(self, groups: int) -> None:
        self.limit, self.matters = groups // 2, True

    def stay_within_accepted(self) -> None:
        self.limit = max(1, min(self.limit, self.largest_accepted))

    def may_explain(self, rejected_groups: int) -> bool:
        """Whether a request with this many groups can have been rejected for its size alone."""
        return rejected_groups > max(1, self.largest_accepted)


class Bisection:
    """Delivers groups of changes. After ``run`` each change is accepted, rejected, or in a blocked audience.

    ``has_control`` tells whether the mechanism can probe a customer without an audience; ``items_per_group`` is the
    number of items in a group, because ODP counts items when it names bad ones; ``was_taken`` tells whether ODP has
    accepted anything of an audience before. ``doubtful`` groups belong to customers of whom ODP rejected something
    before. They are sent last and separately, so that they don't cause the rejection of the other groups.
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
        self.rejected: dict[Change, str] = {}
        self.blocked: dict[int, str] = {}
        self._groups = groups
        self._doubtful = doubtful
        self._has_control = has_control
        self._items_per_group = items_per_group
        self._was_taken = was_taken
        self._size = _Size(limit=max(1, len(groups), len(doubtful)))
        # Changes rejected by elimination, with the size of the last rejected request that held them.
        self._eliminated: dict[Change, int] = {}
        self._accepted_of: Counter[int] = Counter()
        self._probes_rejected: set[int] = set()

    @property
    def learned_limit(self) -> int | None:
        """The largest number of groups that ODP accepted, if it rejected a request for its size."""
        return self._size.largest_accepted or None if self._size.matters else None

    def run(self, send: Callable[[Part], Answer]) -> None:
        """Send the requests one by one, until each change is decided or an answer says nothing about the items."""
        requests = self._requests()
        part = next(requests, None)
        while part is not None:
            answer = send(part)
            if answer.outcome not in (Outcome.DELIVERED, Outcome.REJECTED):
                self._keep_what_is_certain()
                return
            try:
                part = requests.send(answer)
            except StopIteration:
                return

    def _requests(self) -> Requests:
        yield from self._deliver(self._groups)
        yield from self._deliver(self._doubtful)
        yield from self._retest()
        yield from self._probe_audiences(at_the_end=True)

    def _deliver(self, groups: Sequence[Group]) -> Requests:
        while groups := self._not_blocked(groups):
            part, held_back = groups[: self._size.limit], groups[self._size.limit :]
            answer = yield Part(tuple(part))
            if answer.outcome is Outcome.DELIVERED:
                self._accept(part)
                groups = held_back
            elif (again := self._explained(part, answer)) is not None:
                groups = [*again, *held_back]
            else:
                undecided = yield from self._bisect(part, answer)
                groups = [*undecided, *held_back]
            yield from self._probe_audiences()

    def _bisect(self, candidates: Sequence[Group], answer: Answer) -> Generator[Part, Answer, list[Group]]:
        """Find one bad change in a rejected request. Returns the groups about which nothing is known afterwards."""
        reason, rejected_size, by_elimination = answer.reason, len(candidates), False
        undecided: list[Group] = []
        while len(candidates) > 1 or len(candidates[0]) > 1:
            if len(candidates) == 1:  # one customer in several audiences: bisect those
                candidates, by_elimination = _one_by_one(candidates[0]), True
            middle = min(len(candidates) // 2, self._size.limit)
            half, others = candidates[:middle], candidates[middle:]
            answer = yield Part(tuple(half))
            if answer.outcome is Outcome.DELIVERED:
                self._accept(half)
                candidates, by_elimination = others, True
            elif (again := self._explained(half, answer)) is not None:
                return [*again, *others, *undecided]
            else:
                reason, rejected_size, by_elimination = answer.reason, len(half), False
                candidates, undecided = half, [*others, *undecided]
        self._reject(candidates[0][0], reason, rejected_size=rejected_size if by_elimination else None)
        return undecided

    def _retest(self) -> Requests:
        """Send changes rejected by elimination again, in small requests. If ODP accepts them, the size was at fault."""
        while suspected := [change for change, size in self._eliminated.items() if self._size.may_explain(size)]:
            self._eliminated = {}
            for change in suspected:
                del self.rejected[change]
            self._size.stay_within_accepted()
            accepted_before = len(self.accepted)
            yield from self._deliver(_one_by_one(suspected))
            self._size.matters |= len(self.accepted) > accepted_before

    def _probe_audiences(self, *, at_the_end: bool = False) -> Requests:
        """Ask whether an audience is at fault when ODP accepted none of its changes and rejected two, or one at the
        end."""
        certain: dict[int, list[Change]] = {}
        for change in self.rejected:
            if self._is_certain(change) and not self._accepted_of[change.lane]:
                certain.setdefault(change.lane, []).append(change)
        for lane, rejected in certain.items():
            if any(change not in self.rejected for change in rejected):
                continue  # decided meanwhile, when the rest of an audience before it was sent again
            if len(rejected) == 1 and (not at_the_end or self._was_taken(lane)):
                continue
            has_probe = self._has_control(rejected[0])
            if has_probe and lane not in self._probes_rejected:
                answer = yield Part((), control=rejected[0])
                if answer.outcome is Outcome.DELIVERED:
                    yield from self._block_if_still_rejected(lane, rejected)
                    continue
                self._probes_rejected.add(lane)
            if len(rejected) >= (BLOCK_AFTER if has_probe else BLOCK_AFTER_WITHOUT_CONTROL):
                yield from self._block_if_still_rejected(lane, rejected)

    def _block_if_still_rejected(self, lane: int, rejected: Sequence[Change]) -> Requests:
        """Send one rejected change again before the block, which only a person ends: ODP may accept it by now."""
        answer = yield Part(((rejected[0],),))
        if answer.outcome is not Outcome.DELIVERED:
            self._block(lane)
            return
        for change in rejected:
            del self.rejected[change]
        self._accept([(rejected[0],)])
        yield from self._deliver(_one_by_one(rejected[1:]))

    def _explained(self, part: Sequence[Group], answer: Answer) -> list[Group] | None:
        """The groups to send again, if the rejection gives its cause: the size, or the items that it names."""
        if answer.too_large and len(part) > 1:
            self._size.too_large(len(part))
            return list(part)
        named = {position // self._items_per_group: reason for position, reason in answer.named.items()}
        if not any(position < len(part) for position in named):
            return None
        again: list[Group] = []
        for position, group in enumerate(part):
            if position not in named:
                again.append(group)
            elif len(group) == 1:
                self._reject(group[0], named[position])
            else:  # one customer in several audiences, and only one of them may be at fault
                again.extend(_one_by_one(group))
        return again

    def _accept(self, part: Sequence[Group]) -> None:
        self._size.accepted(len(part))
        changes = [change for group in part for change in group]
        self.accepted.extend(changes)
        self._accepted_of.update(change.lane for change in changes)

    def _reject(self, change: Change, reason: str, *, rejected_size: int | None = None) -> None:
        """``rejected_size``, for a change rejected by elimination: the number of groups in the rejected request."""
        self.rejected[change] = reason
        if rejected_size is not None:
            if any(map(self._size.may_explain, self._eliminated.values())):  # the second one: probably it is the size
                self._size.limit = max(1, self._size.largest_accepted)
            self._eliminated[change] = rejected_size

    def _block(self, lane: int) -> None:
        """ODP rejects this audience: its changes wait, and none of them counts as rejected."""
        self.blocked[lane] = next(reason for change, reason in self.rejected.items() if change.lane == lane)
        self.rejected = {change: reason for change, reason in self.rejected.items() if change.lane != lane}
        self._eliminated = {change: size for change, size in self._eliminated.items() if change.lane != lane}

    def _not_blocked(self, groups: Sequence[Group]) -> Sequence[Group]:
        if not self.blocked:
            return groups
        left = (tuple(change for change in group if change.lane not in self.blocked) for group in groups)
        return [group for group in left if group]

    def _is_certain(self, change: Change) -> bool:
        """Whether the size of a request can't have caused the rejection of this change."""
        return not self._size.may_explain(self._eliminated.get(change, 0))

    def _keep_what_is_certain(self) -> None:
        """End without further responses. A change whose rejection isn't proven will be sent again."""
        self.rejected = {
            change: reason
            for change, reason in self.rejected.items()
            if self._is_certain(change) and (self._accepted_of[change.lane] or change.lane in self._probes_rejected)
        }


def _one_by_one(changes: Sequence[Change]) -> list[Group]:
    return [(change,) for change in changes]
