"""Python's garbage collector, told what this is: a large program that stays, and calls whose objects don't."""

import gc

# New containers before the youngest are looked through; a call of 300 events makes some thousands that hold no cycle.
YOUNG = 20_000


def leave_heap_alone() -> None:
    """To be called once all is imported: what is there now will never be garbage, and is looked through no more."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG)
