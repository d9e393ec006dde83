"""Customer records, and identity resolution: how identifiers find, link, merge and leave records."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from sandbox.odp.account.schema import CustomerSchema

KEPT_PER_IDENTIFIER = 25


class Customer:
    """`record` holds plain fields and the newest value of each identifier; `older` holds its earlier values."""

    __slots__ = ("lists", "number", "older", "record", "touched")

    def __init__(self, number: int) -> None:
        self.number = number
        self.record: dict[str, Any] = {}
        self.older: dict[str, list[str]] | None = None
        self.lists: dict[str, tuple[bool, float, bool]] | None = None
        self.touched = 0

    @property
    def zaius_id(self) -> str:
        return f"5a616975-0000-4000-8000-{self.number:012x}"

    def values_of(self, kind: str) -> list[str]:
        """All values of one identifier, oldest first."""
        newest = self.record.get(kind)
        return [*((self.older or {}).get(kind, ())), *(() if newest is None else (newest,))]


class Customers:
    def __init__(self, schema: CustomerSchema) -> None:
        self.schema = schema
        self.by_number: dict[int, Customer] = {}
        self.index: defaultdict[str, dict[str, Customer]] = defaultdict(dict)
        self.writes = 0
        self._last_number = 0

    def __iter__(self) -> Iterator[Customer]:
        return iter(self.by_number.values())

    def find(self, kind: str, value: str) -> Customer | None:
        if kind == "zaius_id":
            return self._by_zaius_id(value)
        return self.index[kind].get(value)

    def _by_zaius_id(self, value: str) -> Customer | None:
        try:
            customer = self.by_number.get(int(value[-12:], 16))
        except ValueError:
            return None
        return customer if customer and customer.zaius_id == value else None

    def write(self, identifiers: tuple[str, ...], attributes: dict[str, Any]) -> Customer:
        """Apply one item. The fast path handles a customer with exactly these identifiers, or none at all."""
        self.writes += 1
        index = self.index
        first = identifiers[0]
        found = index[first].get(attributes[first])
        for kind in identifiers:
            value = attributes[kind]
            holder = index[kind].get(value)
            if holder is not found or (holder is not None and holder.record.get(kind) != value):
                found = self._resolve({kind: attributes[kind] for kind in identifiers})
                break
        if found is None:
            found = self._born()
            for kind in identifiers:
                index[kind][attributes[kind]] = found
        found.record.update(attributes)
        found.touched = self.writes
        return found

    def _resolve(self, identifiers: dict[str, str]) -> Customer:
        """Merge customers that share high-confidence identifiers, and move low-confidence ones to the result."""
        held = {kind: self.index[kind].get(value) for kind, value in identifiers.items()}
        high = {id(each): each for kind, each in held.items() if each and self.schema.is_high(kind)}
        low = [each for kind, each in held.items() if each and not self.schema.is_high(kind)]
        brings_high = any(self.schema.is_high(kind) for kind in identifiers)
        customer = self._merged(list(high.values())) if high else self._adopted(low, brings_high) or self._born()
        for kind, value in identifiers.items():
            self._attach(customer, kind, value)
        return customer

    def _adopted(self, low: list[Customer], brings_high: bool) -> Customer | None:
        """The low-confidence match that an item without a high-confidence match belongs to, if there is one.

        A match is ruled out if both the item and the customer have high-confidence identifiers: they differ.
        """
        for customer in low:
            somebody = any(self.schema.is_high(kind) for kind in self.schema.identifiers if kind in customer.record)
            if not (brings_high and somebody):
                return customer
        return None

    def _born(self) -> Customer:
        self._last_number += 1
        customer = self.by_number[self._last_number] = Customer(self._last_number)
        return customer

    def _merged(self, same: list[Customer]) -> Customer:
        survivor = min(same, key=lambda each: each.number)
        for other in same:
            if other is not survivor:
                self._absorb(survivor, other)
        return survivor

    def _absorb(self, survivor: Customer, other: Customer) -> None:
        """Move everything of `other` to `survivor`. For a field of both, the customer written last wins."""
        newer_first = (other, survivor) if other.touched > survivor.touched else (survivor, other)
        plain = [
            {name: value for name, value in each.record.items() if name not in self.schema.identifiers}
            for each in newer_first
        ]
        values = {kind: other.values_of(kind) for kind in self.schema.identifiers}
        survivor.lists = ((newer_first[1].lists or {}) | (newer_first[0].lists or {})) or None
        del self.by_number[other.number]
        for kind, held in values.items():
            for value in held:
                self._attach(survivor, kind, value)
        survivor.record.update(plain[1] | plain[0])

    def _attach(self, customer: Customer, kind: str, value: str) -> None:
        """Make `value` the customer's newest identifier of its kind, and take it from its previous holder."""
        index = self.index[kind]
        holder = index.get(value)
        if holder is not None and holder is not customer:
            self._detach(holder, kind, value)
        values = [*(each for each in customer.values_of(kind) if each != value), value]
        for forgotten in values[:-KEPT_PER_IDENTIFIER]:
            index.pop(forgotten, None)
        older = values[-KEPT_PER_IDENTIFIER:-1]
        if older:
            customer.older = (customer.older or {}) | {kind: older}
        customer.record[kind] = value
        index[value] = customer

    def _detach(self, holder: Customer, kind: str, value: str) -> None:
        values = [each for each in holder.values_of(kind) if each != value]
        holder.record.pop(kind, None)
        if holder.older:
            holder.older.pop(kind, None)
        if values:
            holder.record[kind] = values[-1]
        if values[:-1]:
            holder.older = (holder.older or {}) | {kind: values[:-1]}
        if holder.number in self.by_number and not any(holder.values_of(each) for each in self.schema.identifiers):
            del self.by_number[holder.number]

    def restore(self, customer: Customer) -> None:
        self.by_number[customer.number] = customer
        self._last_number = max(self._last_number, customer.number)
        self.writes = max(self.writes, customer.touched)
        for kind in self.schema.identifiers:
            for value in customer.values_of(kind):
                self.index[kind][value] = customer
