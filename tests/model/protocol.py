"""Claim, lease and settle as a model small enough to look at every state that it can reach, one step at a time.

A lane has one customer, and an event is the time it carries: ODP holds the time last applied, the ledger the newest
one delivered. Workers stop wherever they like: between two steps any number of others and of ticks may come. Which
function each step stands for, and what is left out because it only takes behaviour away, is in
docs/decisions/0024-models.md. A ``twin`` is a mutation: the same model with one promise broken.
"""

from collections.abc import Iterator
from itertools import permutations
from typing import Any, NamedTuple

# In ticks. A request may start up to LEASE - DEADLINE - 1 after its lease was renewed: drain.LEASE_MARGIN is one tick.
LEASE, DEADLINE, CAPACITY = 2, 1, 2
# Where a worker keeps an eye on the clock.
TIMED = ("planted", "flying")


class Lane(NamedTuple):
    waiting: tuple[int, ...]  # events of calls that have not been answered with 200
    drafts: tuple[tuple[int, int], ...] = ()  # number and event: written and not committed
    log: tuple[tuple[int, bool] | None, ...] = ()  # event, forced; place n holds number n + 1
    cursor: int = 0
    lease: int = 0  # a token
    left: int = 0  # of the lease
    runs: tuple[tuple[int, int], ...] = ()  # open ones: token, last number
    ledger: tuple[int, int] = (0, 0)  # the newest event delivered, its number
    odp: int = 0


class Worker(NamedTuple):
    at: str = "idle"
    token: int = 0
    spans: tuple[tuple[int, int, int], ...] = ()  # lane, cursor that was read, last number
    fold: tuple[tuple[int, int, int], ...] = ()  # lane, event, its number
    clock: int = 0
    taken: bool = True  # whether ODP has taken all of it


class Request(NamedTuple):
    token: int
    fold: tuple[tuple[int, int, int], ...]
    is_late: bool = False  # the worker no longer waits for its response
    applied: bool = False


class State(NamedTuple):
    lanes: tuple[Lane, ...]
    workers: tuple[Worker, ...]
    alerts: int  # crashes, failures and repeats that are left
    requests: tuple[Request, ...] = ()
    doubtful: tuple[tuple[int, int, int], ...] = ()  # closed without a final answer: token, lane, last number
    hint: bool = False

    def lane(self, which: int, **values: Any) -> "State":
        return self._replace(lanes=_with(self.lanes, which, self.lanes[which]._replace(**values)))

    def worker(self, which: int, **values: Any) -> "State":
        return self._replace(workers=_with(self.workers, which, self.workers[which]._replace(**values)))

    def alert(self) -> "State":
        return self._replace(alerts=self.alerts - 1)


class BrokenError(AssertionError):
    """A promise that does not hold, and the steps that lead there."""


Steps = Iterator[tuple[str, State]]


def start(*lanes: int, workers: int = 2, alerts: int = 1) -> State:
    """``lanes`` says how many events each of them will get, in any order."""
    return State(tuple(Lane(tuple(range(1, n + 1))) for n in lanes), (Worker(),) * workers, alerts)


def _with(row: tuple[Any, ...], at: int, value: Any) -> tuple[Any, ...]:
    return (*row[:at], value, *row[at + 1 :])


def _without(row: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    at = row.index(value)
    return row[:at] + row[at + 1 :]


def steps(state: State, twin: str) -> Steps:
    for at in range(len(state.lanes)):
        yield from _receive(state, at, twin)
    for at in range(len(state.workers)):
        yield from _work(state, at, twin)
    for request in state.requests:
        yield from _odp(state, request)
    yield from _rest(state, twin)


def _receive(state: State, at: int, twin: str) -> Steps:
    lane = state.lanes[at]
    if not lane.drafts or twin in ("numbering without the lock", "cursor over ids"):
        number = 1 + (
            max([len(lane.log), *(n for n, _ in lane.drafts)]) if twin == "cursor over ids" else len(lane.log)
        )
        for event in lane.waiting:
            yield (
                f"number {event} of lane {at}",
                state.lane(at, waiting=_without(lane.waiting, event), drafts=(*lane.drafts, (number, event))),
            )
    for draft in lane.drafts:
        number, event = draft
        log = lane.log + (None,) * (number - len(lane.log))
        kept = state.lane(at, drafts=_without(lane.drafts, draft), log=_with(log, number - 1, (event, False)))
        yield f"commit {event}", kept._replace(hint=True)
        if state.alerts:
            undone = state.lane(at, drafts=_without(lane.drafts, draft), waiting=(*lane.waiting, event))
            yield f"web dies before it commits {event}", undone.alert()
            again = kept.lane(at, waiting=(*lane.waiting, event))
            yield f"web dies after it committed {event}", again.alert()._replace(hint=True)


def _free(lane: Lane) -> bool:
    return len(lane.log) > lane.cursor and not (lane.lease and lane.left)


def _work(state: State, at: int, twin: str) -> Steps:
    worker = state.workers[at]
    name = f"worker with lease {worker.token}: " if worker.token else "worker: "
    if worker.at == "idle":
        if state.hint:
            yield name + "hear", state.worker(at, at="drain")._replace(hint=False)
        return
    if state.alerts and worker.token:
        gone = state.worker(at, **Worker()._asdict()).alert()
        yield name + "crash", _abandon(gone, worker.token)
    if worker.at == "drain":
        yield from ((name + "look", found) for found in _look(state, at, twin))
    elif worker.at == "look":
        yield name + "take", _take(state, at, twin)
    elif worker.at == "claimed":
        yield name + "read", state.worker(at, at="folded", fold=_fold(state, worker, twin))
    elif worker.at == "folded":
        held = all(state.lanes[lane].lease == worker.token for lane, _, _ in worker.spans)
        if not worker.fold:
            yield name + "nothing to send", state.worker(at, at="answered", taken=True)
        elif held or twin == "a request without its lease":
            yield name + "open", _plant(state, at)
        else:
            yield name + "lost at open", _give_back(state, at)
    elif worker.at == "planted":
        if worker.clock <= LEASE - DEADLINE - 1 or twin in (
            "lease shorter than the deadline",
            "a request begun too late",
        ):
            sent = (*state.requests, Request(worker.token, worker.fold))
            yield name + "send", state.worker(at, at="flying", clock=0)._replace(requests=sent)
        else:
            yield name + "too late", state.worker(at, at="answered", taken=False)
    elif worker.at == "flying":
        yield from ((name + what, then) for what, then in _hear(state, at))
    elif worker.at == "answered":
        yield name + "settle", _settle(state, at, twin)


def _look(state: State, at: int, twin: str) -> Iterator[State]:
    """claims.claim, its subqueries: the ready lanes, cut to the size of one request. Under the lock on the Install."""
    ready = [lane for lane in range(len(state.lanes)) if _free(state.lanes[lane])]
    if not ready:
        yield state.worker(at, **Worker()._asdict())
    if not ready or any(worker.at == "look" for worker in state.workers):
        return
    for order in permutations(ready):  # any order of the longest unserved lanes
        spans, room = [], CAPACITY
        for lane in order:
            last = min(len(state.lanes[lane].log), state.lanes[lane].cursor + room)
            room -= last - state.lanes[lane].cursor
            if last > state.lanes[lane].cursor:
                more = twin == "claim of one more than there is"
                spans.append((lane, state.lanes[lane].cursor, last + more))
        left_over = len(spans) < len(ready) or any(last < len(state.lanes[lane].log) for lane, _, last in spans)
        looked = state.worker(at, at="look", spans=tuple(sorted(spans)))
        yield looked._replace(hint=state.hint or left_over)


def _take(state: State, at: int, twin: str) -> State:
    """claims.claim, its update and close_abandoned: only lanes that are unchanged since they were read."""
    tokens = {w.token for w in state.workers} | {t for t, _, _ in state.doubtful} | {r.token for r in state.requests}
    tokens |= {lane.lease for lane in state.lanes} | {token for lane in state.lanes for token, _ in lane.runs}
    token = next(n for n in range(1, 99) if n not in tokens)
    spans = []
    for lane, cursor, last in state.workers[at].spans:
        row = state.lanes[lane]
        if _free(row) and row.cursor == cursor:
            spans.append((lane, cursor, last))
            if twin != "open runs left open":
                state = state._replace(doubtful=(*state.doubtful, *((t, lane, n) for t, n in row.runs)))
                state = state.lane(lane, runs=())
            state = state.lane(lane, lease=token, left=1 if twin == "lease shorter than the deadline" else LEASE)
    if not spans:
        return state.worker(at, **Worker()._asdict())
    return state.worker(at, at="claimed", token=token, spans=tuple(spans))


def _fold(state: State, worker: Worker, twin: str) -> tuple[tuple[int, int, int], ...]:
    """lanes.read and fold.fold."""
    send = []
    for lane, cursor, last in worker.spans:
        entries = [(row, cursor + 1 + n) for n, row in enumerate(state.lanes[lane].log[cursor:last])]
        seen = [(*row, number) for row, number in entries if row]
        if len(seen) != last - cursor and twin != "cursor over ids":
            raise BrokenError("a gap in the log")
        held, _ = state.lanes[lane].ledger
        if twin == "fold by arrival":
            send.append((lane, seen[-1][0], seen[-1][2]))
        elif seen:
            event, forced, number = max(seen)
            send += [(lane, event, number)] * (event > held or (event == held and forced))
    return tuple(send)


def _plant(state: State, at: int) -> State:
    """lanes.open_delivery: the lease renewed, a run opened for each lane."""
    worker = state.workers[at]
    sent = {lane for lane, _, _ in worker.fold}
    for lane, _, last in worker.spans:
        if state.lanes[lane].lease == worker.token:
            state = state.lane(lane, left=min(LEASE, max(1, state.lanes[lane].left + LEASE)))
        if lane in sent:
            state = state.lane(lane, runs=(*state.lanes[lane].runs, (worker.token, last)))
    return state.worker(at, at="planted", clock=0)


def _hear(state: State, at: int) -> Steps:
    worker = state.workers[at]
    request = next(r for r in state.requests if r.token == worker.token and not r.is_late)
    over = state._replace(requests=_without(state.requests, request))
    if request.applied:
        yield "taken", over.worker(at, at="answered", taken=True)
    if state.alerts:
        cut = _abandon(state, worker.token).alert()
        yield "given up", cut.worker(at, at="answered", taken=False)
        if not request.applied:  # isolate: another request under the same lease
            for lane, _, _ in worker.fold:
                over = over.lane(lane, runs=tuple(run for run in over.lanes[lane].runs if run[0] != worker.token))
            yield "refused", over.worker(at, at="folded").alert()


def _abandon(state: State, token: int) -> State:
    """The worker no longer waits for this request. ODP may still apply the rest of it, or not."""
    late = tuple(r._replace(is_late=r.is_late or r.token == token) for r in state.requests)
    return state._replace(requests=tuple(r for r in late if not (r.is_late and r.applied)))


def _settle(state: State, at: int, twin: str) -> State:
    """lanes.settle, whole: or LeaseLostError and give_back."""
    worker = state.workers[at]
    if twin != "settle without the token" and any(state.lanes[n].lease != worker.token for n, _, _ in worker.spans):
        return _give_back(state, at)
    for lane, _, last in worker.spans:
        row = state.lanes[lane]
        if not worker.taken:
            undecided = tuple((token, lane, n) for token, n in row.runs if token == worker.token)
            state = state._replace(doubtful=state.doubtful + undecided)
        runs = tuple(run for run in row.runs if run[0] != worker.token)
        state = state.lane(
            lane, lease=0, left=0, runs=runs, cursor=max(row.cursor, last) if worker.taken else row.cursor
        )
    for lane, event, number in worker.fold if worker.taken else ():
        if twin == "fold by arrival" or event >= state.lanes[lane].ledger[0]:
            state = state.lane(lane, ledger=(event, number))
    return state.worker(at, **Worker("drain")._asdict())


def _give_back(state: State, at: int) -> State:
    for lane, row in enumerate(state.lanes):
        if row.lease == state.workers[at].token:
            state = state.lane(lane, lease=0, left=0)
    return state.worker(at, **Worker("drain")._asdict())


def _odp(state: State, request: Request) -> Steps:
    rest = _without(state.requests, request)
    if not request.applied:
        applied = state
        for lane, event, _ in request.fold:
            applied = applied.lane(lane, odp=event)
        if request.is_late:
            yield "ODP applies late", applied._replace(requests=rest)
            yield "ODP drops", state._replace(requests=rest)
        else:
            yield "ODP applies", applied._replace(requests=(*rest, request._replace(applied=True)))


def _rest(state: State, twin: str) -> Steps:
    if state.hint:
        yield "the hint is lost", state._replace(hint=False)
    elif any(map(_free, state.lanes)) and twin != "no sweep":
        yield "sweep", state._replace(hint=True)
    for doubt in state.doubtful:
        token, lane, last = doubt
        row = state.lanes[lane]
        # RECONCILE_AFTER_SECONDS is long enough that ODP is done with the request and concurrent requests are settled.
        is_over = not row.runs and all(request.token != token for request in state.requests)
        if is_over or twin == "affirmed too soon":
            then = state._replace(doubtful=_without(state.doubtful, doubt))
            if row.ledger[1] > last and twin != "nothing affirmed" and not row.drafts:
                yield "affirm", then.lane(lane, log=(*row.log, (row.ledger[0], True)))._replace(hint=True)
            elif row.ledger[1] <= last or twin == "nothing affirmed":
                yield "nothing to affirm", then
    longest = 2 if twin == "lease shorter than the deadline" else DEADLINE
    if any(worker.at == "flying" and worker.clock >= longest for worker in state.workers):
        return  # the timer cuts first
    stands_still = any(_stands_still(state, worker) for worker in state.workers)
    if state.alerts or not stands_still:
        lanes = tuple(lane._replace(left=max(0, lane.left - 1)) for lane in state.lanes)
        workers = tuple(w._replace(clock=min(w.clock + 1, 2)) if w.at in TIMED else w for w in state.workers)
        then = state._replace(lanes=lanes, workers=workers)
        yield "tick", then.alert() if stands_still else then


def _stands_still(state: State, worker: Worker) -> bool:
    """Whether the next tick makes it too late for a worker that lives: that is a trouble like a crash."""
    if worker.at == "planted" and worker.clock == LEASE - DEADLINE - 1:
        return True
    return worker.at != "flying" and any(lane.lease == worker.token and lane.left == 1 for lane in state.lanes)
