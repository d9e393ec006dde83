"""Everything that one running sandbox is, and the way a request takes through it."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox.odp.accounts import Account, Accounts, Caller
from sandbox.odp.answers import Answer, Refused, forbidden, html, in_json, titled, too_many_requests
from sandbox.odp.clock import Clock
from sandbox.odp.deeds import DEEDS, retold
from sandbox.odp.endpoints import Endpoint, find_endpoint
from sandbox.odp.faults import Fault, Faults, fields_of
from sandbox.odp.observe import Observer
from sandbox.odp.request import Request
from sandbox.odp.state import Line, StateFile
from sandbox.odp.visibility import Visibility, Write

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
        self._stopped = False
        self._wake_up()

    def _wake_up(self) -> None:
        for kind, public, at, payload in self.state.lines():
            self._replay(kind, public, at, payload)
        default = self.accounts.named(self.options.private_key.partition(".")[0])
        if default is None:
            default = self.add_account(self.options.private_key)
        DEEDS["settings"](default, self.options.settings, self.clock.now())
        self.state.rewrite(self._retold)

    def _replay(self, kind: str, public: str, at: float, payload: Any) -> None:
        if kind == "account":
            self.accounts.add(Account(payload, self.clock))
        elif account := self.accounts.named(public):
            DEEDS[kind](account, payload, at)

    def _retold(self) -> Iterator[Line]:
        now = self.clock.now()
        for account in self.accounts:
            yield "account", account.public, now, account.private
            yield from ((kind, account.public, now, payload) for kind, payload in retold(account))

    def stop(self) -> None:
        """Accepted writes aren't lost by stopping: they become visible early and are saved."""
        with self.lock:
            self._stopped = True
            self.visibility.apply_all()
            self.visibility.close()
            self.state.rewrite(self._retold)
            self.state.close()

    def reset(self, *, keep_schema: bool = False) -> None:
        with self.lock:
            self.visibility.forget_all()
            self.faults.clear()
            self.observer.forget()
            for account in self.accounts:
                account.forget_customers() if keep_schema else account.forget_everything()
            self.state.rewrite(self._retold)

    def add_account(self, private_key: str) -> Account:
        account = Account(private_key, self.clock)
        self.accounts.add(account)
        self.state.append(("account", account.public, self.clock.now(), private_key))
        return account

    def do(self, kind: str, account: Account, payload: Any) -> None:
        """A deed that is visible at once."""
        now = self.clock.now()
        DEEDS[kind](account, payload, now)
        self.state.append((kind, account.public, now, payload))

    def accept(self, kind: str, account: Account, items: list[Any], request: Request) -> None:
        """A deed that becomes visible later, in its turn."""
        request.seen.applied = True
        if account.consent == "opted_out" and account.assumptions.consent_effect == "everything":
            return
        self.state.append((kind, account.public, self.clock.now(), items))
        self.visibility.accept(
            number=request.seen.number,
            kind=kind,
            account=account.public,
            items=items,
            arrived=request.seen.arrived,
            accepted=time.monotonic(),
        )
        if self.state.wants_rewriting():
            self.visibility.apply_all()
            self.state.rewrite(self._retold)

    def _become_visible(self, write: Write) -> None:
        account = self.accounts.named(write.account)
        if account is not None:
            DEEDS[write.kind](account, write.items, write.accepted_at)

    def arrival(self, method: str, target: str, headers: dict[str, str]) -> Request:
        """As soon as the request's head is read: from here on it is in flight."""
        request = Request.from_head(method, target, headers)
        endpoint, request.named = find_endpoint(method, request.path)
        public, _, secret = request.key.partition(".")
        request.seen = self.observer.arrival(
            method=method,
            path=target,
            endpoint=endpoint.label if endpoint else f"{method} (unknown)",
            account=public,
            key="private" if secret else "public" if public else "none",
            headers=request.shown_headers(),
        )
        request.endpoint = endpoint
        return request

    def read(self, request: Request, body: bytes) -> None:
        request.take_body(body)
        items = request.items if request.endpoint and request.endpoint.takes_items else []
        self.observer.understood(request.seen, body=body, items=len(items), fields=fields_of_all(items))

    def strike(self, request: Request) -> Fault | None:
        items = request.items if request.endpoint and request.endpoint.takes_items else []
        fault = self.faults.strike(method=request.method, path=request.path, body=request.body, items=items)
        if fault is not None:
            request.fault = fault
            request.seen.fault = fault.number
        return fault

    def answer(self, request: Request) -> Answer:
        """What ODP would say, unless a fault speaks in its place."""
        fault = request.fault
        speaks = fault is not None and ("status" in fault.then or "html" in fault.then)
        if fault is None or not speaks:
            return self._handled(request)
        if fault.then.get("apply"):
            self._handled(request)
        return scripted(fault, self.clock.stamp())

    def _handled(self, request: Request) -> Answer:
        with self.lock:
            try:
                return self._dispatched(request)
            except Refused as refused:
                return refused.answer

    def _dispatched(self, request: Request) -> Answer:
        endpoint = request.endpoint
        if self._stopped:
            return titled(503, self.clock.stamp())
        if endpoint is None:
            return titled(404, self.clock.stamp(), {"message": f"no such endpoint: {request.method} {request.path}"})
        caller = self.accounts.caller(request.key, self.clock.now())
        if caller is None or not self._may(caller, endpoint):
            return forbidden()
        strictly = caller.account.assumptions.rate_limiter == "window"
        if endpoint.group and not caller.account.limits.passes(endpoint.group, strictly=strictly):
            patience = caller.account.assumptions.retry_after == "on"
            return too_many_requests((("Retry-After", "1"),) if patience else ())
        if len(request.body) > caller.account.assumptions.max_body_bytes:
            return titled(413, self.clock.stamp())
        return endpoint.handle(self, caller, request)

    @staticmethod
    def _may(caller: Caller, endpoint: Endpoint) -> bool:
        if endpoint.group == "graphql":
            return caller.is_private or caller.account.assumptions.graphql_key == "public"
        return caller.is_private or not endpoint.needs_private


def fields_of_all(items: list[Any]) -> frozenset[str]:
    """Items of a batch mostly carry the same few sets of names, so each set is looked at once."""
    shapes: dict[Any, Any] = {}
    for item in items:
        attributes = item.get("attributes") if isinstance(item, dict) else None
        if isinstance(attributes, dict):
            shapes[tuple(attributes)] = item
        else:
            shapes[id(item)] = item
    return frozenset().union(*(fields_of(item) for item in shapes.values()))


UNTITLED = {403: forbidden, 429: too_many_requests}


def scripted(fault: Fault, stamp: str) -> Answer:
    status = int(fault.then.get("status", 500))
    headers = tuple((str(name), str(value)) for name, value in fault.then.get("headers", {}).items())
    if fault.then.get("html"):
        made = html(status)
    elif "body" in fault.then:
        made = _from_body(status, fault.then["body"])
    elif status in UNTITLED:
        made = UNTITLED[status]()
    else:
        made = titled(status, stamp, {"message": fault.message})
    return Answer(made.status, made.body, made.content_type, headers)


def _from_body(status: int, body: Any) -> Answer:
    return Answer(status, body.encode(), "text/plain") if isinstance(body, str) else in_json(status, body)
