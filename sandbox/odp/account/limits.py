"""Rate limits of an account. Events and objects have none."""

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Gate:
    """A token bucket, or strictly at most `rate` requests in any one-second window."""

    rate: float
    tokens: float = field(init=False)
    filled_at: float = field(init=False)
    taken: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokens = self.rate
        self.filled_at = time.monotonic()

    def passes(self, *, strictly: bool) -> bool:
        if self.rate <= 0:
            return True
        now = time.monotonic()
        if strictly:
            return self._fits_window(now)
        self.tokens = min(max(1.0, self.rate), self.tokens + (now - self.filled_at) * self.rate)
        self.filled_at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True

    def _fits_window(self, now: float) -> bool:
        self.taken = [at for at in self.taken if at > now - 1]
        if len(self.taken) >= self.rate:
            return False
        self.taken.append(now)
        return True


@dataclass(slots=True)
class Limits:
    profiles: float = 10
    lists: float = 10
    graphql: float = 500
    gates: dict[str, Gate] = field(default_factory=dict)

    def rates(self) -> dict[str, float]:
        return {"profiles": self.profiles, "lists": self.lists, "graphql": self.graphql}

    def passes(self, group: str, *, strictly: bool) -> bool:
        rate = self.rates().get(group, 0)
        gate = self.gates.get(group)
        if gate is None or gate.rate != rate:
            gate = self.gates[group] = Gate(rate)
        return gate.passes(strictly=strictly)
