"""Every state that the protocol can reach, breadth first, and the promises that have to hold in each of them."""

from tests.model.protocol import BrokenError, Lane, State, steps


def check(state: State) -> None:
    flying = [lane for request in state.requests if not request.is_late for lane, _, _ in request.fold]
    if len(flying) != len(set(flying)):
        raise BrokenError("two requests in flight for a lane")
    for lane in state.lanes:
        if len(lane.runs) > 1:
            raise BrokenError("two open runs in a lane")
        if lane.cursor > len(lane.log):
            raise BrokenError("a cursor ahead of the log")
        if lane.ledger[0] != max((row[0] for row in lane.log[: lane.cursor] if row), default=0):
            raise BrokenError("the ledger is not the fold of what is delivered")
    if is_over(state) and any(lane.odp != lane.ledger[0] for lane in state.lanes):
        raise BrokenError("all is done and ODP is wrong")


def check_step(what: str, before: State, after: State) -> None:
    for old, new in zip(before.lanes, after.lanes, strict=True):
        if old is new:
            continue
        if new.cursor < old.cursor or new.ledger < old.ledger:
            raise BrokenError("a cursor or a ledger goes back")
        if new.odp < old.odp and what != "ODP applies late":
            raise BrokenError("an older state is applied after a newer one")
        if not _accepted(old) <= _accepted(new) | set(new.waiting):
            raise BrokenError("an accepted event is lost")


def _accepted(lane: Lane) -> set[int]:
    return {row[0] for row in lane.log if row} | {event for _, event in lane.drafts}


def is_over(state: State) -> bool:
    """Nothing is left to do for anybody."""
    return (
        not (state.requests or state.doubtful)
        and all(worker.at == "idle" for worker in state.workers)
        and not any(lane.waiting or lane.drafts or lane.lease or lane.cursor < len(lane.log) for lane in state.lanes)
    )


def explore(first: State, *, twin: str = "") -> int:
    """How many states there are. Raises ``BrokenError``, with the shortest way there, when a promise does not hold."""
    numbers = {first: 0}
    line = [first]
    came: list[tuple[int, str]] = [(0, "")]  # from which state, by which step
    before: list[list[int]] = [[]]
    ends = []
    for number, state in enumerate(line):
        what = ""
        try:
            for what, found in steps(state, twin):
                check_step(what, state, found)
                then = found._replace(
                    workers=tuple(sorted(found.workers)),
                    requests=tuple(sorted(found.requests)),
                    doubtful=tuple(sorted(set(found.doubtful))),
                )
                known = numbers.setdefault(then, len(line))
                if known == len(line):
                    check(then)
                    line.append(then)
                    came.append((number, what))
                    before.append([])
                    if is_over(then):
                        ends.append(known)
                before[known].append(number)
        except BrokenError as broken:
            raise BrokenError(f"{broken}: {'; '.join([*_way(number, came), what])}") from None
    reach = set(ends)
    for number in ends:  # grows while iterating: states that lead to an end
        ends += (new := set(before[number]) - reach)
        reach |= new
    stuck = next((number for number in range(len(line)) if number not in reach), None)
    if stuck is not None:
        raise BrokenError(f"it never comes to an end: {'; '.join(_way(stuck, came))}")
    return len(line)


def _way(number: int, came: list[tuple[int, str]]) -> list[str]:
    way: list[str] = []
    while number:
        number, what = came[number]
        way.append(what)
    return way[::-1]
