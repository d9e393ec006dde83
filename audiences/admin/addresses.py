"""The addresses of pages, remembered: *Now* has hundreds of links, and ``reverse`` takes 30 µs for each."""

from functools import lru_cache

from django.urls import get_script_prefix, reverse


def address(page: str, *args: object) -> str:
    """The path of a named page, as ``reverse`` gives it. ``args`` are hashable, such as the id of a row."""
    return _composed(get_script_prefix(), page, args)


@lru_cache(maxsize=4096)
def _composed(prefix: str, page: str, args: tuple[object, ...]) -> str:
    return reverse(page, args=args)
