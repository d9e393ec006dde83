"""The state of one running sandbox: its accounts, clock, faults, observer and state file, and how accounts change."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox.odp.account.accounts import Account, Accounts
from sandbox.odp.account.changes import CHANGES, changes_of
from sandbox.odp.wire.faults import Faults
from sandbox.odp.wire.observer import Observer, Seen
from sandbox.odp.world.clock import Clock
from sandbox.odp.world.state_file import Line, StateFile
from sandbox.odp.world.visibility import Visibility, Write

DEFAULT_PRIVATE_KEY = "sandbox-public.sandbox-private"


@dataclass(frozen=True, slots=True)
class Options:
    private_key: str = DEFAULT_PRIVATE_KEY
    region: str = "any"
    delay: tuple[float, float] = (0, 0)
    latency: tuple[float, float] = (0, 0)
    shuffled: bool = False
    seed: int = 0
    state: Path | None = None
    keep_requests: int = 200_000
    keep_body_bytes: int = 128_000_000
    settings: dict[str, Any] = field(default_factory=dict)


class World:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.lock = threading.RLock()
        self.clock = Clock()
        self.accounts = Accounts(options.region)
        self.faults = Faults()
        self.observer = Observer(keep_requests=options.keep_requests, keep_body_bytes=options.keep_body_bytes)
        self.visibility = Visibility(
            lock=self.lock,
            clock=self.clock,
            apply=self._become_visible,
            earliest_arrival=self.observer.earliest_arrival,
            delay=options.delay,
            shuffled=options.shuffled,
            seed=options.seed,
        )
        self.state = StateFile(options.state)
        self.stopped = False
        self._restore()

    def _restore(self) -> None:
        for kind, public, at, payload in self.state.lines():
            self._replay(kind, public, at, payload)
        default = self.accounts.named(self.options.private_key.partition(".")[0])
        if default is None:
            default = self.add_account(self.options.private_key)
        CHANGES["settings"](default, self.options.settings, self.clock.now())
        self.state.rewrite(self._saved)

    def _replay(self, kind: str, public: str, at: float, payload: Any) -> None:
        if kind == "account":
            self.accounts.add(Account(payload))
        elif account := self.accounts.named(public):
            CHANGES[kind](account, payload, at)

    def _saved(self) -> Iterator[Line]:
        now = self.clock.now()
        for account in self.accounts:
            yield "account", account.public, now, account.private
            yield from ((kind, account.public, now, payload) for kind, payload in changes_of(account))

    def stop(self) -> None:
        """Apply all accepted writes, without their delay, and save the state."""
        with self.lock:
            self.stopped = True
            self.visibility.apply_all()
            self.visibility.close()
            self.state.rewrite(self._saved)
            self.state.close()

    def reset(self, *, keep_schema: bool = False) -> None:
        with self.lock:
            self.visibility.forget_all()
            self.faults.clear()
            self.observer.forget()
            for account in self.accounts:
                account.forget_customers() if keep_schema else account.forget_everything()
            self.state.rewrite(self._saved)

    def add_account(self, private_key: str) -> Account:
        account = Account(private_key)
        self.accounts.add(account)
        self.state.append(("account", account.public, self.clock.now(), private_key))
        return account

    def change(self, kind: str, account: Account, payload: Any) -> None:
        """Apply and save a change that is visible at once."""
        now = self.clock.now()
        CHANGES[kind](account, payload, now)
        self.state.append((kind, account.public, now, payload))

    def accept(self, kind: str, account: Account, items: list[Any], seen: Seen) -> None:
        """Save a change that becomes visible after the configured delay, in its order."""
        seen.applied = True
        if account.consent == "opted_out" and account.assumptions.consent_effect == "everything":
            return
        self.state.append((kind, account.public, self.clock.now(), items))
        self.visibility.accept(
            number=seen.number,
            kind=kind,
            account=account.public,
            items=items,
            arrived=seen.arrived,
            accepted=time.monotonic(),
        )
        if self.state.wants_rewriting():
            self.visibility.apply_all()
            self.state.rewrite(self._saved)

    def _become_visible(self, write: Write) -> None:
        account = self.accounts.named(write.account)
        if account is not None:
            CHANGES[write.kind](account, write.items, write.accepted_at)
