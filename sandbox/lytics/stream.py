"""Generates Lytics messages about the customers of an invented shop."""

from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random
from typing import Any

from sandbox.lytics import clock
from sandbox.lytics.audiences import Audience, hex_id

Message = dict[str, Any]
SegmentEvent = dict[str, str]
Identifier = str | int | list[str]

DAY = 86_400 * clock.SECOND
START = 1_767_607_200 * clock.SECOND  # 2026-01-05T10:00:00Z; fixed, so that a seed gives the same bytes on any day

EXISTING = 1 / 3  # share of the stream that is existing users, which are sent first
MOVES = 0.03  # share of live messages in which a customer leaves one audience for another
CHANGES = 0.08  # share of live messages about a changed field
CLOSE_CALLS = 0.004  # share of live messages with an enter and an exit within a microsecond or at the same instant
FAVOURITES = 5  # number of audiences that one customer enters and leaves
ROUND_TIMES = 0.1  # share of times with few digits or no fraction
MOST_IDENTIFIERS = 50  # Lytics joins at most this number of identifiers into one profile
ZONES = (-420, -300, 60, 120, 330)


@dataclass(frozen=True, kw_only=True)
class Plan:
    events: int
    audiences: list[Audience]
    seed: int
    customers: int
    identifier_field: str = "_id"
    array_identifiers: bool = False
    numeric_identifiers: bool = False
    full_profiles: bool = False
    cloudevents: bool = False
    start: int = START


@dataclass(slots=True)
class Customer:
    number: int
    identifier: Identifier
    audiences: list[int] = field(default_factory=list)
    last_moved: int = 0


class Stream:
    """Iterates over messages with exactly `plan.events` transitions, in the order in which Lytics would notice them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._random = Random(plan.seed)
        self._customers: dict[int, Customer] = {}
        self._left = plan.events
        self._now = plan.start
        self._job = hex_id(plan.seed, "job")
        # Cumulative weights: a few audiences are large and most are small.
        self._popularity = list(accumulate(1 / (rank + 1) ** 0.7 for rank in range(len(plan.audiences))))

    def __iter__(self) -> Iterator[Message]:
        yield from self._existing_users()
        while self._left:
            yield from self._something_happens()

    def members(self, audience: int) -> list[str]:
        """The members at this point of the stream, from the shop's own records."""
        inside = (customer for customer in self._customers.values() if audience in customer.audiences)
        return sorted(str(one) for customer in inside for one in _listed(customer.identifier))

    # The story

    def _existing_users(self) -> Iterator[Message]:
        until = self._left - int(self._left * EXISTING)
        for number in range(self.plan.customers):
            customer = self._customer(number)
            for audience in {self._favourite(customer) for _ in range(self._random.choice((0, 1, 1, 2, 3)))}:
                if self._left <= until:
                    return
                self._now += self._random.randrange(clock.SECOND // 100)
                joined = self.plan.start - self._random.randrange(DAY, 180 * DAY)
                yield self._message(customer, [self._enter(customer, audience, joined)])

    def _something_happens(self) -> Iterator[Message]:
        self._time_passes()
        customer = self._customer(
            int(self.plan.customers * self._random.random() ** 2)
        )  # the square makes low numbers appear more often
        audience = self._favourite(customer)
        dice = self._random.random()
        if dice < CLOSE_CALLS and self._left >= 2:
            yield from self._close_call(customer, audience)
        elif dice < CLOSE_CALLS + MOVES and self._left >= 2 and customer.audiences:
            yield from self._move(customer, audience)
        elif dice < CLOSE_CALLS + MOVES + CHANGES and customer.audiences:
            yield from self._change(customer)
        else:
            yield self._message(customer, [self._toggle(customer, audience, self._moment(customer))])

    def _close_call(self, customer: Customer, audience: int) -> Iterator[Message]:
        moment = self._moment(customer)
        was_in = audience in customer.audiences
        gap = self._random.choice((0, 1, 700))
        first = self._message(customer, [self._toggle(customer, audience, moment)])
        second = self._message(customer, [self._toggle(customer, audience, moment + gap)])
        if was_in and not gap:  # exit and enter at the same instant: the exit wins
            customer.audiences.remove(audience)
        yield from (first, second)

    def _move(self, customer: Customer, destination: int) -> Iterator[Message]:
        moment = self._moment(customer)
        origin = self._random.choice(customer.audiences)
        transitions = [self._exit(customer, origin, moment)]
        if destination != origin and destination not in customer.audiences:
            transitions.append(self._enter(customer, destination, moment))
        yield self._message(customer, transitions)

    def _change(self, customer: Customer) -> Iterator[Message]:
        """A watched field changed. With array identifiers this is the list of identifiers: it got a new one."""
        watching = customer.audiences
        if self._can_grow(customer) and len(watching) <= self._left:
            customer.identifier = [*_listed(customer.identifier), self._new_identifier(customer)]
        else:
            watching = [self._random.choice(watching)]
        self._now = self._moment(customer)
        if self._random.random() < 0.5:
            yield self._message(customer, [self._changed(audience) for audience in watching])
        else:
            yield from (self._message(customer, [self._changed(audience)]) for audience in watching)

    def _time_passes(self) -> None:
        self._now += self._random.randrange(clock.SECOND // 5)
        if self._random.random() < ROUND_TIMES:
            unit = self._random.choice((1, 1000, 1000_000)) * 1000
            self._now += -self._now % unit

    # Its parts

    def _toggle(self, customer: Customer, audience: int, moment: int) -> SegmentEvent:
        move = self._exit if audience in customer.audiences else self._enter
        return move(customer, audience, moment)

    def _enter(self, customer: Customer, audience: int, moment: int) -> SegmentEvent:
        customer.audiences.append(audience)
        customer.last_moved = max(customer.last_moved, moment)
        transition = self._transition(audience, "enter", enter=self._written(moment))
        if self._random.random() < 0.03:  # the scheduled end of a membership that is still active
            transition["exit"] = "2099-01-01T00:00:00Z"
        return transition

    def _exit(self, customer: Customer, audience: int, moment: int) -> SegmentEvent:
        customer.audiences.remove(audience)
        customer.last_moved = max(customer.last_moved, moment)
        transition = self._transition(audience, "exit", exit=self._written(moment))
        if self._random.random() < 0.03:
            transition["enter"] = self._written(moment - self._random.randrange(DAY))
        return transition

    def _changed(self, audience: int) -> SegmentEvent:
        return self._transition(audience, "change")

    def _transition(self, audience: int, event: str, **times: str) -> SegmentEvent:
        self._left -= 1
        named = self.plan.audiences[audience]
        return {"id": named.segment_id, "event": event, "slug": named.slug, **times}

    def _message(self, customer: Customer, transitions: list[SegmentEvent]) -> Message:
        made_at = self._now
        if transitions[0]["event"] == "change":
            # The message's time is the only time of a `change`, so the customer's next move must have a later time.
            customer.last_moved = made_at
        else:
            made_at += 4 * clock.SECOND + self._random.randrange(2 * clock.SECOND)
        data: dict[str, Any] = {self.plan.identifier_field: customer.identifier, "segment_events": transitions}
        if self.plan.full_profiles:
            data = {**self._profile(customer), **data}
        return self._envelope(customer, data, self._written(made_at))

    def _envelope(self, customer: Customer, data: dict[str, Any], made_at: str) -> Message:
        if not self.plan.cloudevents:
            meta = {"object": "user", "subscription_id": self._job, "timestamp": made_at}
            return {"id": self._profile_id(customer), "data": data, "meta": meta}
        return {
            "specversion": "1.0",
            "id": self._profile_id(customer),
            "source": f"/work/{self._job}",
            "type": "com.lytics.audience.user.event",
            "datacontenttype": "application/json",
            "time": made_at,
            "data": data,
        }

    def _profile(self, customer: Customer) -> dict[str, Any]:
        """The fields of a job that exports all of them: text, numbers, lists, maps, and booleans as letters."""
        name = f"customer{customer.number}"
        return {
            "_created": clock.write(self.plan.start - DAY * (customer.number % 900)),
            "_modified": clock.write(self._now),
            "_num_visits": customer.number % 40,
            "_streamnames": ["default", "orders"],
            "channels": ["web", "email"][: 1 + customer.number % 2],
            "email": f"{name}@example.com",
            "first_name": name.title(),
            "is_subscriber": "tf"[customer.number % 2],
            "score_propensity": customer.number % 100 / 7,
            "visits_by_city": {"Göteborg": customer.number % 5, "Lyon": 1},
        }

    def _moment(self, customer: Customer) -> int:
        return max(self._now, customer.last_moved + 1)

    def _written(self, moment: int) -> str:
        zone = self._random.choice(ZONES) if self._random.random() < 0.04 else 0
        return clock.write(moment, offset_minutes=zone)

    def _favourite(self, customer: Customer) -> int:
        taste = customer.number * 0x9E3779B1 + self._random.randrange(FAVOURITES) * 0x85EBCA77
        return bisect(self._popularity, taste % 2**32 / 2**32 * self._popularity[-1])

    # Customers

    def _customer(self, number: int) -> Customer:
        if number not in self._customers:
            customer = self._customers[number] = Customer(number, "")
            customer.identifier = self._first_identifier(customer)
        return self._customers[number]

    def _first_identifier(self, customer: Customer) -> Identifier:
        if self.plan.array_identifiers:
            return [self._new_identifier(customer)]
        if self.plan.numeric_identifiers and customer.number % 20 == 0:
            return 2**53 + 1 + int(hex_id(self.plan.seed, "number", customer.number)[:13], 16)
        return self._new_identifier(customer)

    def _can_grow(self, customer: Customer) -> bool:
        return isinstance(customer.identifier, list) and len(customer.identifier) < MOST_IDENTIFIERS

    def _new_identifier(self, customer: Customer) -> str:
        nth = len(_listed(customer.identifier)) if customer.identifier else 0
        digits = hex_id(self.plan.seed, "customer", customer.number, nth)
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))

    def _profile_id(self, customer: Customer) -> str:
        """A large number, constant for a customer: a receiver that uses it as an event's id loses events at once."""
        return str((customer.number * 0x9E3779B97F4A7C15 + self.plan.seed * 0xD1B54A32D192ED03 + 2**63) % 2**64)


def _listed(identifier: Identifier) -> list[Any]:
    return identifier if isinstance(identifier, list) else [identifier]
