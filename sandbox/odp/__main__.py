"""`python -m sandbox.odp`: run a sandbox ODP until a signal stops it."""

import argparse
import contextlib
import gc
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sandbox.odp.account.assumptions import Assumptions
from sandbox.odp.account.conditions import Invalid
from sandbox.odp.server import SandboxServer
from sandbox.odp.world import DEFAULT_PRIVATE_KEY, Options, World

# Latency in seconds for `--order shuffled`: only requests that overlap can be reordered.
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
    parser.add_argument("--port", type=int, default=8090, help="0 chooses a free port; the first output line shows it")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument(
        "--state", type=Path, metavar="FILE", help="save customers, fields, segments and lists in this file"
    )
    parser.add_argument("--private-key", default=DEFAULT_PRIVATE_KEY, help="of the first account, <public>.<secret>")
    parser.add_argument(
        "--region", default="any", choices=("any", "us", "eu1", "au1"), help="refuse other regions' keys"
    )
    parser.add_argument("--profile", default="instant", choices=PROFILES, help="preset of --delay and --latency")
    parser.add_argument("--delay", type=span, metavar="MIN-MAX", help="seconds until a write is visible")
    parser.add_argument("--latency", type=span, metavar="MIN-MAX", help="seconds until a response is sent")
    parser.add_argument(
        "--order",
        default="acceptance",
        choices=("acceptance", "shuffled"),
        help="order in which overlapping requests are applied",
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
    parser.add_argument("--keep-requests", type=int, default=200_000, metavar="N", help="number of requests to keep")
    parser.add_argument(
        "--keep-body-bytes", type=int, default=128_000_000, metavar="N", help="bytes of request bodies to keep"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of random delays and orders")
    parser.add_argument("--open-control", action="store_true", help="answer /sandbox/ to any address (in a container)")
    parser.add_argument("--until-stdin-closes", action="store_true", help="stop when the parent process has ended")
    return parser


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """Only the settings given on the command line. A saved account keeps its other settings."""
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


def main(words: Sequence[str] | None = None) -> int:
    given = arguments().parse_args(words)
    # Collect garbage rarely: customers are many, live long and form no cycles, so scanning them would dominate.
    gc.set_threshold(200_000, 20, 100)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        # Bind the port before opening the state file: a second sandbox on the same port must not touch the file.
        server = SandboxServer(given.host, given.port, open_control=given.open_control)
        server.world = world = World(options(given))
    except (OSError, OverflowError, Invalid) as problem:
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
