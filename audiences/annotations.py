"""Values that a query adds to its rows, read with their types: no model declares them, so mypy does not know them."""

from typing import TypeVar

from django.db.models import Model

V = TypeVar("V")


def optional(row: Model, name: str, kind: type[V]) -> V | None:
    """The value that the query of ``row`` added as ``name``, or None where it found none.

    Raises ``AttributeError`` when the query adds no such value, and ``TypeError`` when it is of another type.
    """
    value: object = getattr(row, name)
    if value is None or isinstance(value, kind):
        return value
    raise TypeError(f"{name} of {row._meta.object_name} is not of type {kind.__name__}")


def required(row: Model, name: str, kind: type[V]) -> V:
    """The same for a value that is never NULL. Raises ``TypeError`` when it is."""
    value = optional(row, name, kind)
    if value is None:
        raise TypeError(f"{name} of {row._meta.object_name} is NULL, not of type {kind.__name__}")
    return value
