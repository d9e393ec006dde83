"""Runs first in every Python process of a chaos run (by PYTHONPATH): bends a clock, or breaks a promise on purpose."""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType


def bend_clock(seconds: float) -> None:
    """Set this process's idea of the time of day wrong; its monotonic clock stays right."""
    import datetime
    import time
    from datetime import datetime as real

    real_time, real_time_ns = time.time, time.time_ns
    time.time = lambda: real_time() + seconds
    time.time_ns = lambda: real_time_ns() + round(seconds * 1e9)

    class Meta(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, real)

        def __subclasscheck__(cls, subclass: type) -> bool:
            return issubclass(subclass, real)

    class Bent(real, metaclass=Meta):
        def __new__(cls, *args: object, **kwargs: object) -> real:  # type: ignore[misc] # another type than Bent
            return real(*args, **kwargs)  # type: ignore[arg-type] # passed on as they are  # noqa: DTZ001

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> real:  # type: ignore[override] # not Bent
            return real.now(tz) + datetime.timedelta(seconds=seconds)

        @classmethod
        def utcnow(cls) -> real:  # type: ignore[override] # not Bent
            return real.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(seconds=seconds)

    datetime.datetime = Bent  # type: ignore[misc] # replaced on purpose


class _Patcher(importlib.abc.MetaPathFinder):
    """Lets ``twins`` change modules of the bridge right after they were loaded."""

    def __init__(self, twin: str) -> None:
        self.twin = twin

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith(("audiences.", "workers.")):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        loader, load = spec.loader, spec.loader.exec_module

        def load_and_break(module: ModuleType) -> None:
            load(module)
            from tests.chaos import twins

            twins.spoil(self.twin, module)

        loader.exec_module = load_and_break  # type: ignore[method-assign] # replaced on purpose
        return spec


if skew := os.environ.get("CHAOS_CLOCK"):
    bend_clock(float(skew))
if twin := os.environ.get("CHAOS_TWIN"):
    sys.meta_path.insert(0, _Patcher(twin))
