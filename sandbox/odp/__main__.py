"""`python -m sandbox.odp`: start a sandbox ODP and keep it until told to stop."""

import argparse
import contextlib
import gc
import signal
import sys
import threading
from dataclasses import fields
from pathlib import Path
from typing import Any

from sandbox.odp.account.assumptions import Assumptions
from sandbox.odp.account.conditions import Invalid
from sandbox.odp.server import SandboxServer
from sandbox.odp.world import DEFAULT_PRIVATE_KEY, Options, World

# Answers that come at once hardly ever overlap, and then there is nothing to shuffle.
OVERLAPPING = (0.01, 0.05)
PROFILES = {"instant": ((0.0, 0.0), (0.0, 0.0)), "realistic": ((2.0, 16.0), (0.03, 0.15))}


def span(text: str) -> tuple[float, float]:
    low, _, high = text.partition("-")
    try:
        return float(low), float(high or low)
    except ValueError as bad:
        raise argparse.ArgumentTypeError(f"{text!r} is neither SECONDS nor MIN-MAX") from bad


def assumption(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    try:
        Assumptions().change(name, value)
    except ValueError as bad:
        raise argparse.ArgumentTypeError(str(bad)) from bad
    return name, value


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sandbox.odp", description="A stand-in for ODP on this machine.")
    parser.add_argument("--port", type=int, default=8090, help="0 takes a free one, which the first line printed tells")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--state", type=Path, metavar="FILE", help="keep customers, fields, segments and lists here")
    parser.add_argument("--private-key", default=DEFAULT_PRIVATE_KEY, help="of the first account, <public>.<secret>")
    parser.add_argument(
        "--region", default="any", choices=("any", "us", "eu1", "au1"), help="refuse other regions' keys"
    )
    parser.add_argument(
        "--profile", default="instant", choices=PROFILES, help="how soon writes are seen, how fast answers"
    )
    parser.add_argument("--delay", type=span, metavar="MIN-MAX", help="seconds until a write is seen")
    parser.add_argument("--latency", type=span, metavar="MIN-MAX", help="seconds until a request is answered")
    parser.add_argument(
        "--order", default="acceptance", choices=("acceptance", "shuffled"), help="of overlapping requests"
    )
    parser.add_argument("--consent", choices=("opted_in", "opted_out"), help="the Api app's default consent")
    parser.add_argument("--passthrough", choices=("on", "off"), help="whether passthrough audiences are enabled")
    parser.add_argument("--lenient-schema", action="store_true", help="drop unknown fields instead of refusing them")
    parser.add_argument("--rate-profiles", type=float, metavar="N", help="requests per second; 0 for no limit")
    parser.add_argument("--rate-lists", type=float, metavar="N")
    parser.add_argument("--rate-graphql", type=float, metavar="N")
    names = ", ".join(each.name for each in fields(Assumptions))
    parser.add_argument(
        "--assume", type=assumption, action="append", default=[], metavar="NAME=VALUE", help=f"one of {names}"
    )
    parser.add_argument("--keep-requests", type=int, default=200_000, metavar="N", help="how many to remember")
    parser.add_argument("--keep-body-bytes", type=int, default=128_000_000, metavar="N", help="of their bodies")
    parser.add_argument("--seed", type=int, default=0, help="of delays and shuffling")
    parser.add_argument("--open-control", action="store_true", help="answer /sandbox/ to any address (in a container)")
    parser.add_argument("--until-stdin-closes", action="store_true", help="stop when whoever started this is gone")
    return parser


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """Only what was said: a saved account keeps the rest."""
    rates = {"profiles": given.rate_profiles, "lists": given.rate_lists, "graphql": given.rate_graphql}
    chosen: dict[str, Any] = {
        "assumptions": dict(given.assume) | ({"unknown_field": "drop"} if given.lenient_schema else {}),
        "rates": {name: rate for name, rate in rates.items() if rate is not None},
    }
    if given.consent:
        chosen["consent"] = given.consent
    if given.passthrough:
        chosen["passthrough"] = given.passthrough == "on"
    return chosen


def options(given: argparse.Namespace) -> Options:
    delay, latency = PROFILES[given.profile]
    if given.order == "shuffled" and latency == (0, 0):
        latency = OVERLAPPING
    return Options(
        private_key=given.private_key,
        region=given.region,
        delay=given.delay or delay,
        latency=given.latency or latency,
        shuffled=given.order == "shuffled",
        seed=given.seed,
        state=given.state,
        keep_requests=given.keep_requests,
        keep_body_bytes=given.keep_body_bytes,
        settings=settings(given),
    )


def main() -> int:
    given = arguments().parse_args()
    # Customers are many, long-lived and without cycles: looking through them for garbage costs more than all the rest.
    gc.set_threshold(200_000, 20, 100)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        # The port first: a second sandbox started by mistake must not get as far as the first one's state file.
        server = SandboxServer(given.host, given.port, open_control=given.open_control)
        server.world = world = World(options(given))
    except (OSError, Invalid) as problem:
        print(f"The sandbox can't start: {problem}", file=sys.stderr)
        return 1
    if given.until_stdin_closes:
        threading.Thread(target=_wait_for_end_of_input, args=(stop,), daemon=True).start()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    with contextlib.suppress(BrokenPipeError):
        print(f"Sandbox ODP listening on http://{given.host}:{server.server_port}", flush=True)
    stop.wait()
    server.shutdown()
    server.server_close()
    world.stop()
    return 0


def _wait_for_end_of_input(stop: threading.Event) -> None:
    sys.stdin.buffer.read()
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
