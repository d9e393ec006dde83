"""Handles one request: observe it, apply at most one fault, and call the endpoint."""

from typing import Any

from sandbox.odp.account.accounts import Caller
from sandbox.odp.api import Endpoint, find_endpoint
from sandbox.odp.wire.answers import Answer, Refused, forbidden, html, in_json, titled, too_many_requests
from sandbox.odp.wire.faults import Fault, fields_of
from sandbox.odp.wire.request import Request
from sandbox.odp.world import World


class Exchange:
    def __init__(self, world: World, method: str, target: str, headers: dict[str, str]) -> None:
        """Create this when the head of the request has been read: the request is in flight from now on."""
        self.world = world
        self.request = request = Request.from_head(method, target, headers)
        self.endpoint, request.named = find_endpoint(method, request.path)
        public, _, secret = request.key.partition(".")
        request.seen = world.observer.arrival(
            method=method,
            path=target,
            endpoint=self.endpoint.label if self.endpoint else f"{method} (unknown)",
            account=public,
            key="private" if secret else "public" if public else "none",
            headers=request.shown_headers(),
        )

    def read(self, body: bytes) -> None:
        self.request.take_body(body)
        items = self._items()
        self.world.observer.understood(self.request.seen, body=body, items=len(items), fields=_fields_of_all(items))

    def strike(self) -> Fault | None:
        request = self.request
        fault = self.world.faults.strike(
            method=request.method, path=request.path, body=request.body, items=self._items()
        )
        if fault is not None:
            request.fault = fault
            request.seen.fault = fault.number
        return fault

    def _items(self) -> list[Any]:
        return self.request.items if self.endpoint and self.endpoint.takes_items else []

    def answer(self) -> Answer:
        """ODP's response, or the scripted response of a fault."""
        fault = self.request.fault
        if fault is None or not ("status" in fault.then or "html" in fault.then):
            return self._handled()
        if fault.then.get("apply"):
            self._handled()
        return _scripted(fault, self.world.clock.stamp())

    def _handled(self) -> Answer:
        with self.world.lock:
            try:
                return self._dispatched()
            except Refused as refused:
                return refused.answer

    def _dispatched(self) -> Answer:
        world, request, endpoint = self.world, self.request, self.endpoint
        if world.stopped:
            return titled(503, world.clock.stamp())
        if endpoint is None:
            return titled(404, world.clock.stamp(), {"message": f"no such endpoint: {request.method} {request.path}"})
        caller = world.accounts.caller(request.key, world.clock.now())
        if caller is None or not _may(caller, endpoint):
            return forbidden()
        strictly = caller.account.assumptions.rate_limiter == "window"
        if endpoint.group and not caller.account.limits.passes(endpoint.group, strictly=strictly):
            patience = caller.account.assumptions.retry_after == "on"
            return too_many_requests((("Retry-After", "1"),) if patience else ())
        if len(request.body) > caller.account.assumptions.max_body_bytes:
            return titled(413, world.clock.stamp())
        return endpoint.handle(world, caller, request)


def _may(caller: Caller, endpoint: Endpoint) -> bool:
    if endpoint.group == "graphql":
        return caller.is_private or caller.account.assumptions.graphql_key == "public"
    return caller.is_private or not endpoint.needs_private


def _fields_of_all(items: list[Any]) -> frozenset[str]:
    """The audience fields of all items. Each distinct set of field names is read once."""
    shapes: dict[Any, Any] = {}
    for item in items:
        attributes = item.get("attributes") if isinstance(item, dict) else None
        if isinstance(attributes, dict):
            shapes[tuple(attributes)] = item
        else:
            shapes[id(item)] = item
    return frozenset().union(*(fields_of(item) for item in shapes.values()))


_UNTITLED = {403: forbidden, 429: too_many_requests}


def _scripted(fault: Fault, stamp: str) -> Answer:
    status = int(fault.then.get("status", 500))
    headers = tuple((str(name), str(value)) for name, value in fault.then.get("headers", {}).items())
    if fault.then.get("html"):
        made = html(status)
    elif "body" in fault.then:
        made = _from_body(status, fault.then["body"])
    elif status in _UNTITLED:
        made = _UNTITLED[status]()
    else:
        made = titled(status, stamp, {"message": fault.message})
    return Answer(made.status, made.body, made.content_type, headers)


def _from_body(status: int, body: Any) -> Answer:
    return Answer(status, body.encode(), "text/plain") if isinstance(body, str) else in_json(status, body)
