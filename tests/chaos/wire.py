"""What the sandbox ODP saw: when each lane was in a request, the rate of calls per account, the states per customer."""

import json
import threading
from collections import defaultdict
from contextlib import suppress
from typing import Any

from sandbox.odp.testing import ControlledSandbox

PATHS = ("/v3/profiles", "/v3/lists/subscriptions")
# Seconds between two looks, and requests in one of them.
EVERY, AT_ONCE = 0.5, 400

Lane = tuple[str, str]
Request = tuple[float, float, int]


class Wire:
    """Polls the sandbox in a separate thread, so that the sandbox has to keep only recent requests."""

    def __init__(self, odp: ControlledSandbox) -> None:
        self.odp = odp
        # By account and audience: when its requests arrived and ended, and their numbers.
        self.requests: defaultdict[Lane, list[Request]] = defaultdict(list)
        # By account: when rate-limited requests arrived.
        self.arrivals: defaultdict[str, list[float]] = defaultdict(list)
        # The sent states by account, audience and customer, without plain repeats.
        self.told: defaultdict[Lane, dict[str, list[bool]]] = defaultdict(dict)
        self.writes = 0
        self.items = 0
        self.repeats = 0
        self._seen = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(EVERY):
            # A failed poll loses nothing: the next one returns the same requests.
            with suppress(OSError):
                while self._look():
                    pass

    def halt(self) -> None:
        """Stop polling."""
        self._stopped.set()
        self._thread.join()

    def stop(self) -> None:
        """Read the remaining requests, which must have ended by now, and stop."""
        self.halt()
        while self._look():
            pass

    def _look(self) -> bool:
        """Read the next ended requests in order of arrival. Returns whether there may be more."""
        query = f"/sandbox/requests?since={self._seen}&bodies=1&limit={AT_ONCE}"
        found: list[dict[str, Any]] = self.odp.control(query)["requests"]
        for request in found:
            if request["ended"] is None:
                return False
            self._take(request)
            self._seen = request["number"]
        return len(found) == AT_ONCE

    def _take(self, request: dict[str, Any]) -> None:
        account, path = request["account"], request["path"]
        if path.startswith("/v3/profiles"):
            self.arrivals[account].append(request["arrived"])
        if path not in PATHS or request["method"] != "POST":
            return
        self.writes += 1
        for field in request["fields"]:
            self.requests[account, field].append((request["arrived"], request["ended"], request["number"]))
        for item in json.loads(request["body"] or "[]"):
            self._hear(account, item)

    def _hear(self, account: str, item: dict[str, Any]) -> None:
        named = item.get("attributes", item)
        who = named["fs_user_id"]
        states = {field: value for field, value in named.items() if isinstance(value, bool)}
        if "list_id" in item:
            states = {item["list_id"]: item["subscribed"]}
        for audience, state in states.items():
            self.items += 1
            told = self.told[account, audience].setdefault(who, [])
            if told and told[-1] == state:
                self.repeats += 1
            else:
                told.append(state)
