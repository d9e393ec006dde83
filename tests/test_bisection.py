"""Bisection: exactly the bad changes of a refused request are found, in few requests; all others are delivered."""

import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odp.mechanisms import Change
from odp.outcomes import Answer, Outcome
from workers.bisection import BLOCK_AFTER_WITHOUT_CONTROL, Bisection, Group, Part

DELIVERED = Answer(Outcome.DELIVERED, status=202)
FAILED = Answer(Outcome.RETRY_LATER, "503", status=503)


@dataclass
class Destination:
    """What takes requests by rules that a test sets, and keeps what it was asked."""

    bad: Collection[tuple[int, str]] = ()
    bad_customers: Collection[str] = ()
    bad_lanes: Collection[int] = ()
    most: int = 10_000
    status_for_size: int = 413
    names: str = "none"
    items_per_group: int = 1
    asked: list[Part] = field(default_factory=list)
    taken: list[Change] = field(default_factory=list)

    def __call__(self, part: Part) -> Answer:
        self.asked.append(part)
        if part.control is not None:
            return refused() if part.control.identifier in self.bad_customers else DELIVERED
        if len(part.groups) > self.most:
            return refused(too_large=self.status_for_size == 413)
        wrong = [position for position, group in enumerate(part.groups) if any(map(self.is_bad, group))]
        if wrong:
            told = {"none": [], "first": wrong[:1], "all": wrong}[self.names]
            return refused({position * self.items_per_group: f"bad {position}" for position in told})
        self.taken += [change for group in part.groups for change in group]
        return DELIVERED

    def is_bad(self, change: Change) -> bool:
        return (
            (change.lane, change.identifier) in self.bad
            or change.identifier in self.bad_customers
            or change.lane in self.bad_lanes
        )


def refused(named: dict[int, str] | None = None, *, too_large: bool = False) -> Answer:
    return Answer(Outcome.REJECTED, "400: no", status=400, named=named or {}, too_large=too_large)


def change(identifier: str, lane: int = 1) -> Change:
    return Change(lane, f"lytics_{lane}", identifier, True, 1, 1)


def singles(count: int, lane: int = 1) -> list[Group]:
    return [(change(f"u{number}", lane),) for number in range(count)]


def bisection_of(
    groups: list[Group], *, doubtful: list[Group] | None = None, control: bool = True, items_per_group: int = 1
) -> Bisection:
    return Bisection(
        groups, doubtful=doubtful or [], has_control=lambda change: control, items_per_group=items_per_group
    )


def carry_out(bisection: Bisection, destination: Callable[[Part], Answer], *, most: int = 10_000) -> int:
    """Run it to its end. Returns the number of requests."""
    requests = 0

    def send(part: Part) -> Answer:
        nonlocal requests
        requests += 1
        assert requests <= most, "it never comes to an end"
        return destination(part)

    bisection.run(send)
    return requests


def stop_after(answers: int, destination: Callable[[Part], Answer]) -> Callable[[Part], Answer]:
    """The same destination, which fails after this number of answers."""
    left = iter(range(answers))
    return lambda part: FAILED if next(left, None) is None else destination(part)


def answer_first(answer: Answer, destination: Callable[[Part], Answer]) -> Callable[[Part], Answer]:
    """The same destination, with another answer to the first request."""
    first = iter([answer])
    return lambda part: next(first, None) or destination(part)


def changes_in(groups: list[Group]) -> list[Change]:
    return [change for group in groups for change in group]


# --- One bad in many ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["none", "all"])
def test_one_bad_customer_in_500_costs_at_most_ten_more_requests_at_any_position(names: str) -> None:
    for position in range(500):
        groups = singles(500)
        destination = Destination(bad_customers=[f"u{position}"], names=names)
        bisection = bisection_of(groups)
        requests = carry_out(bisection, destination)
        assert requests - 1 <= 10, position
        assert list(bisection.rejected) == [change(f"u{position}")]
        assert bisection.accepted == destination.taken
        assert len(destination.taken) == 499
        assert bisection.blocked == {}


def test_an_accepted_request_costs_no_further_one() -> None:
    bisection = bisection_of(singles(500))
    assert carry_out(bisection, Destination()) == 1
    assert len(bisection.accepted) == 500


def test_nothing_to_send_is_no_request() -> None:
    assert carry_out(bisection_of([]), Destination()) == 0


def test_named_ones_are_set_apart_and_the_rest_goes_again_once() -> None:
    """Between the two: whether it is the audience, because nothing of it has been taken yet."""
    destination = Destination(bad_customers=["u3", "u7", "u499"], names="all")
    bisection = bisection_of(singles(500))
    assert carry_out(bisection, destination) == 3
    assert [len(part.groups) for part in destination.asked] == [500, 0, 497]
    assert {bad.identifier: words for bad, words in bisection.rejected.items()} == {
        "u3": "bad 3",
        "u7": "bad 7",
        "u499": "bad 499",
    }


def test_a_rejection_that_names_no_sent_item_counts_as_naming_none() -> None:
    def destination(part: Part) -> Answer:
        bad = any(group[0].identifier == "u2" for group in part.groups)
        return refused({900: "who?"}) if bad else DELIVERED

    bisection = bisection_of(singles(8))
    carry_out(bisection, destination)
    assert [bad.identifier for bad in bisection.rejected] == ["u2"]


def test_the_second_item_of_a_group_names_the_group() -> None:
    bisection = bisection_of(singles(4), items_per_group=2)
    destination = answer_first(refused({5: "second item of u2"}), Destination())
    assert carry_out(bisection, destination) == 2
    assert {bad.identifier: words for bad, words in bisection.rejected.items()} == {"u2": "second item of u2"}


# --- Several audiences of one customer in an item -------------------------------------------------------------


@pytest.mark.parametrize("names", ["none", "first", "all"])
def test_only_the_rejected_audience_of_a_customer_is_separated(names: str) -> None:
    together = tuple(change("kim", lane) for lane in (1, 2, 3))
    groups = [*singles(3, 1), together, *singles(3, 2), *singles(3, 3)]
    destination = Destination(bad=[(2, "kim")], names=names)
    bisection = bisection_of(groups)
    carry_out(bisection, destination)
    assert list(bisection.rejected) == [change("kim", 2)]
    assert set(bisection.accepted) == set(changes_in(groups)) - {change("kim", 2)}


# --- A whole audience -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["none", "first", "all"])
def test_an_audience_of_which_odp_accepts_nothing_is_blocked_and_others_continue(names: str) -> None:
    groups = [*singles(40, 1), *singles(60, 2), *singles(40, 3)]
    bisection = bisection_of(groups)
    carry_out(bisection, Destination(bad_lanes=[2], names=names))
    assert list(bisection.blocked) == [2]
    assert bisection.rejected == {}
    assert {accepted.lane for accepted in bisection.accepted} == {1, 3}
    assert len(bisection.accepted) == 80


def test_an_audience_that_shares_its_customers_with_others_is_blocked_alone() -> None:
    groups: list[Group] = [tuple(change(f"u{number}", lane) for lane in (1, 2, 3)) for number in range(40)]
    bisection = bisection_of(groups)
    carry_out(bisection, Destination(bad_lanes=[2]))
    assert list(bisection.blocked) == [2]
    assert bisection.rejected == {}
    assert len(bisection.accepted) == 80


def test_every_audience_may_be_blocked_at_once() -> None:
    groups = [*singles(10, 1), *singles(10, 2)]
    bisection = bisection_of(groups)
    carry_out(bisection, Destination(bad_lanes=[1, 2]))
    assert set(bisection.blocked) == {1, 2}
    assert (bisection.rejected, bisection.accepted) == ({}, [])


def test_one_customer_of_a_blocked_audience_is_enough_to_decide() -> None:
    bisection = bisection_of([(change("kim"),)])
    assert carry_out(bisection, Destination(bad_lanes=[1])) == 3
    assert (list(bisection.blocked), bisection.rejected) == ([1], {})


def test_a_bad_customer_alone_in_a_lane_is_parked_and_the_lane_is_not_blocked() -> None:
    destination = Destination(bad_customers=["kim"])
    bisection = bisection_of([(change("kim"),)])
    assert carry_out(bisection, destination) == 2
    assert destination.asked[-1].control == change("kim")
    assert (list(bisection.rejected), bisection.blocked) == ([change("kim")], {})


def test_an_audience_of_which_odp_took_something_is_never_blocked() -> None:
    bad = [f"u{number}" for number in range(1, 60)]
    bisection = bisection_of(singles(60))
    carry_out(bisection, Destination(bad_customers=bad))
    assert bisection.blocked == {}
    assert {refused.identifier for refused in bisection.rejected} == set(bad)


def test_bad_customers_only_are_parked_up_to_a_point_and_then_it_is_the_audience() -> None:
    for count in (49, 50):
        bisection = bisection_of(singles(count))
        carry_out(bisection, Destination(bad_customers=[f"u{number}" for number in range(count)]))
        assert (len(bisection.rejected), list(bisection.blocked)) == ((0, [1]) if count == 50 else (count, []))


@pytest.mark.parametrize("control", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_an_audience_is_not_blocked_if_odp_stops_rejecting_its_customers(count: int, control: bool) -> None:
    """Between the last rejection and the probe, or between the last rejection and the block."""
    rejecting = Destination(bad_customers=[f"u{number}" for number in range(count)])
    bisection = bisection_of(singles(count), control=control)

    ended: list[Part] = []

    def send(part: Part) -> Answer:
        if part.control is not None or len(bisection.rejected) >= BLOCK_AFTER_WITHOUT_CONTROL:
            ended.append(part)
        return DELIVERED if ended else rejecting(part)

    carry_out(bisection, send)
    assert bisection.blocked == {}


def test_two_audiences_that_odp_stops_rejecting_at_once_are_both_delivered() -> None:
    """Sending the rest of the first audience again decides about the second one, too."""
    bisection, first = bisection_of([*singles(2, 1), *singles(2, 2)]), Destination(bad_lanes=[1, 2], names="all")
    carry_out(bisection, lambda part: DELIVERED if first.asked else first(part))
    assert (len(bisection.accepted), bisection.rejected, bisection.blocked) == (4, {}, {})


def test_the_second_rejection_tests_the_audience() -> None:
    destination, bisection = Destination(bad_lanes=[1]), bisection_of(singles(20))
    refused_before_probe = []

    def send(part: Part) -> Answer:
        if part.control is not None:
            refused_before_probe.append(len(bisection.rejected))
        return destination(part)

    carry_out(bisection, send)
    assert refused_before_probe == [2]


def test_without_a_control_item_a_few_rejections_and_no_success_block() -> None:
    for count in (2, 3):
        destination = Destination(bad_lanes=[1])
        bisection = bisection_of([*singles(count), *singles(5, 2)], control=False)
        carry_out(bisection, destination)
        assert (len(bisection.rejected), list(bisection.blocked)) == ((0, [1]) if count == 3 else (count, []))
        assert not any(part.control for part in destination.asked)
        assert len(bisection.accepted) == 5


# --- Too large ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [413, 400])
@pytest.mark.parametrize("most", [1, 2, 99, 100, 250, 499])
def test_a_request_that_was_only_too_large_rejects_no_item_and_teaches_the_size(most: int, status: int) -> None:
    destination = Destination(most=most, status_for_size=status)
    bisection = bisection_of(singles(500))
    carry_out(bisection, destination)
    assert (bisection.rejected, bisection.blocked) == ({}, {})
    assert len(bisection.accepted) == 500
    assert len(destination.asked) <= 500 / most * 2 + 22
    assert bisection.learned_limit is not None
    assert most / 2 <= bisection.learned_limit <= most


def test_an_item_that_is_too_large_alone_is_rejected() -> None:
    bisection = bisection_of([(change("kim"),)])
    carry_out(bisection, answer_first(refused(too_large=True), Destination(bad_customers=["kim"])))
    assert list(bisection.rejected) == [change("kim")]


def test_where_every_request_is_too_large_no_size_is_learned_and_one_probe_is_sent() -> None:
    probes: list[Part] = []

    def destination(part: Part) -> Answer:
        probes.extend([part] if part.control else [])
        return refused(too_large=True)

    bisection = bisection_of(singles(3))
    carry_out(bisection, destination)
    assert (len(bisection.rejected), bisection.learned_limit, len(probes)) == (3, None, 1)


def test_a_bad_one_that_was_sent_alone_makes_no_later_request_smaller() -> None:
    """The one before it was found by elimination, and may have been rejected for the size."""
    destination = Destination(bad_customers=["u3", "u4"])
    carry_out(bisection_of(singles(8)), destination)
    assert [len(part.groups) for part in destination.asked] == [8, 4, 2, 1, 4, 2, 1, 3, 1]


def test_one_item_that_is_too_large_in_any_company_makes_no_request_of_the_others_smaller() -> None:
    def destination(part: Part) -> Answer:
        has_it = any(group[0].identifier == "u300" for group in part.groups)
        return refused(too_large=True) if has_it or part.control else DELIVERED

    bisection = bisection_of(singles(500))
    carry_out(bisection, destination)
    assert list(bisection.rejected) == [change("u300")]
    assert bisection.learned_limit == 250


@pytest.mark.parametrize("status", [413, 400])
def test_a_bad_one_in_a_request_that_is_too_large_as_well_is_found(status: int) -> None:
    destination = Destination(most=100, status_for_size=status, bad_customers=["u77"])
    bisection = bisection_of(singles(500))
    carry_out(bisection, destination)
    assert list(bisection.rejected) == [change("u77")]
    assert len(bisection.accepted) == 499


def test_a_bad_one_teaches_nothing_about_size() -> None:
    for position in range(0, 500, 13):
        bisection = bisection_of(singles(500))
        carry_out(bisection, Destination(bad_customers=[f"u{position}"]))
        assert bisection.learned_limit is None


# --- Customers with an earlier rejection ----------------------------------------------------------------------


def test_doubtful_customers_go_last_and_do_not_spoil_the_request_of_the_others() -> None:
    destination = Destination(bad_customers=["spoilt"])
    bisection = bisection_of(singles(20), doubtful=[(change("spoilt"),), (change("better"),)])
    carry_out(bisection, destination)
    assert destination.asked[0].groups == tuple(singles(20))
    assert list(bisection.rejected) == [change("spoilt")]
    assert len(bisection.accepted) == 21


def test_doubtful_customers_of_a_blocked_audience_are_blocked_with_it() -> None:
    doubtful = [(change("kim", 1), change("kim", 2)), (change("lee", 1),)]
    bisection = bisection_of(singles(5, 1), doubtful=doubtful)
    destination = Destination(bad_lanes=[1])
    carry_out(bisection, destination)
    assert destination.asked[-1].groups == ((change("kim", 2),),)
    assert (list(bisection.blocked), bisection.rejected) == ([1], {})
    assert bisection.accepted == [change("kim", 2)]


# --- Interrupted ----------------------------------------------------------------------------------------------


def interrupted(groups: list[Group], destination: Destination, *, control: bool = True) -> Iterator[Bisection]:
    """The same bisection, stopped after each number of answers."""
    for answers in range(10_000):
        bisection = bisection_of(groups, control=control)
        destination.taken.clear()
        if carry_out(bisection, stop_after(answers, destination)) <= answers:
            return
        yield bisection


@pytest.mark.parametrize("names", ["none", "first", "all"])
def test_when_it_is_interrupted_an_audience_in_doubt_is_not_a_heap_of_bad_customers(names: str) -> None:
    destination = Destination(bad_lanes=[2], names=names)
    stops = list(interrupted([*singles(20, 1), *singles(20, 2)], destination))
    assert len(stops) > 1
    for bisection in stops:
        assert bisection.rejected == {}
        assert set(bisection.blocked) <= {2}


@pytest.mark.parametrize("status", [413, 400])
def test_an_interruption_rejects_no_item_for_the_size(status: int) -> None:
    destination = Destination(most=30, status_for_size=status)
    stops = list(interrupted(singles(100), destination))
    assert len(stops) > 1
    for bisection in stops:
        assert (bisection.rejected, bisection.blocked) == ({}, {})
        assert bisection.accepted == destination.taken[: len(bisection.accepted)]


def test_results_before_an_interruption_are_kept() -> None:
    bisection = bisection_of(singles(64))
    destination = Destination(bad_customers=["u40", "u50", "u63"], names="first")
    # The four answers: named, named, the probe, named.
    assert carry_out(bisection, stop_after(4, destination)) == 5
    assert {bad.identifier for bad in bisection.rejected} == {"u40", "u50", "u63"}


# --- Anything at all ------------------------------------------------------------------------------------------

lanes = st.integers(1, 3)
memberships = st.sets(st.tuples(lanes, st.integers(0, 40).map(str)), max_size=80)


def grouped(changes: set[tuple[int, str]]) -> list[Group]:
    by_customer: dict[str, list[Change]] = {}
    for lane, identifier in sorted(changes, key=lambda pair: (pair[1], pair[0])):
        by_customer.setdefault(identifier, []).append(change(identifier, lane))
    return [tuple(group) for group in by_customer.values()]


@given(memberships, st.data())
def test_every_bad_customer_is_found_and_every_other_accepted(
    changes: set[tuple[int, str]], data: st.DataObject
) -> None:
    customers = sorted({identifier for _, identifier in changes}) or [""]
    bad = data.draw(st.sets(st.sampled_from(customers), max_size=12))
    spoilt = data.draw(st.sets(st.sampled_from(customers), max_size=12))
    groups = grouped(changes)
    destination = Destination(
        bad_customers=bad,
        names=data.draw(st.sampled_from(["none", "first", "all"])),
        most=data.draw(st.sampled_from([10_000, 25, 7, 1])),
        status_for_size=data.draw(st.sampled_from([413, 400])),
    )
    bisection = bisection_of(
        [group for group in groups if group[0].identifier not in spoilt],
        doubtful=[group for group in groups if group[0].identifier in spoilt],
    )
    requests = carry_out(bisection, destination)
    every = changes_in(groups)
    assert set(bisection.rejected) == {one for one in every if one.identifier in bad}
    assert sorted(bisection.accepted) == sorted(one for one in every if one.identifier not in bad)
    assert bisection.accepted == destination.taken, "nobody is sent twice once he was taken"
    assert bisection.blocked == {}
    # Of 276,000 random cases none needed more than 4.7 a change; that one took one item a request and did not say so.
    assert requests <= 6 * len(every) + 12


def test_large_requests_with_many_bad_items_are_bisected() -> None:
    """As above; Hypothesis prefers small requests, which rarely have several reasons for rejection."""
    for seed in range(400):
        bisect_at_random(seed)


def bisect_at_random(seed: int) -> None:
    chance = random.Random(seed)
    size = chance.randint(1, 120)
    groups = grouped({(chance.randint(1, 3), str(chance.randint(0, size))) for _ in range(size)})
    chance.shuffle(groups)
    customers = [group[0].identifier for group in groups]
    bad = set(chance.sample(customers, min(len(customers), chance.choice([0, 1, 1, 2, 5, 20]))))
    spoilt = set(chance.sample(customers, len(customers) // 4))
    destination = Destination(
        bad_customers=bad,
        names=chance.choice(["none", "first", "all"]),
        most=chance.choice([10_000, 60, 25, 7, 1]),
        status_for_size=chance.choice([413, 400]),
    )
    bisection = bisection_of(
        [group for group in groups if group[0].identifier not in spoilt],
        doubtful=[group for group in groups if group[0].identifier in spoilt],
    )
    carry_out(bisection, destination)
    every = changes_in(groups)
    assert set(bisection.rejected) == {one for one in every if one.identifier in bad}, seed
    assert set(bisection.accepted) == set(every) - set(bisection.rejected), seed
    assert bisection.blocked == {}, seed
    assert bisection.learned_limit is None or bisection.learned_limit <= destination.most < 10_000, seed


@given(memberships, st.sets(lanes), st.sampled_from(["none", "first", "all"]))
def test_exactly_the_audiences_that_are_rejected_entirely_are_blocked(
    changes: set[tuple[int, str]], bad_lanes: set[int], names: str
) -> None:
    groups = grouped(changes)
    bisection = bisection_of(groups)
    carry_out(bisection, Destination(bad_lanes=bad_lanes, names=names))
    every = changes_in(groups)
    assert set(bisection.blocked) == {one.lane for one in every if one.lane in bad_lanes}
    assert sorted(bisection.accepted) == sorted(one for one in every if one.lane not in bad_lanes)
    assert bisection.rejected == {}


@given(memberships, st.data())
def test_it_terminates_and_covers_every_item_even_with_random_answers(
    changes: set[tuple[int, str]], data: st.DataObject
) -> None:
    answers = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=40))
    control, asked = data.draw(st.booleans()), iter(range(10**9))

    def destination(part: Part) -> Answer:
        roll = answers[next(asked) % len(answers)]
        if roll < 4:
            return DELIVERED
        return refused({roll: "named"} if roll > 6 else None, too_large=roll == 4)

    groups = grouped(changes)
    bisection = bisection_of(groups, control=control)
    carry_out(bisection, destination)
    every = changes_in(groups)
    event_statuses = [
        *bisection.accepted,
        *bisection.rejected,
        *(one for one in every if one.lane in bisection.blocked),
    ]
    assert set(event_statuses) == set(every)
    assert not set(bisection.accepted) & set(bisection.rejected)
    assert len(bisection.accepted) == len(set(bisection.accepted))
