"""A value that a query adds to a row is read with its type, or not at all."""

import pytest
from django.db.models import BigIntegerField, Count, Value

from audiences import annotations
from audiences.models import Install

pytestmark = pytest.mark.django_db


def test_an_added_value_is_read_with_its_type(install: Install) -> None:
    row = Install.objects.annotate(many=Count("pk"), none=Value(None, output_field=BigIntegerField())).get()
    assert annotations.optional(row, "many", int) == 1
    assert annotations.required(row, "many", int) == 1
    assert annotations.optional(row, "none", int) is None


def test_null_where_a_value_is_required_is_an_error(install: Install) -> None:
    row = Install.objects.annotate(none=Value(None, output_field=BigIntegerField())).get()
    with pytest.raises(TypeError, match="none of Install is NULL"):
        annotations.required(row, "none", int)


def test_another_type_is_an_error(install: Install) -> None:
    row = Install.objects.annotate(many=Count("pk")).get()
    with pytest.raises(TypeError, match="many of Install is not of type str"):
        annotations.optional(row, "many", str)


def test_a_value_that_the_query_lacks_is_an_error(install: Install) -> None:
    with pytest.raises(AttributeError):
        annotations.optional(install, "many", int)
