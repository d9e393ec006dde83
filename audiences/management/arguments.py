"""The common arguments and prompts of commands: an install, a customer, a confirmation, and the person's name."""

import getpass
import os
import socket
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from django.core.management.base import CommandError, CommandParser

from audiences.models import Install
from lytics.identifiers import storable

Report = TypeVar("Report")

_INSTALL = "the install's id, as in its webhook URL, or its name"
# Characters of the columns that say who did something.
_LONGEST_NAME = 150


def add_install(parser: CommandParser) -> None:
    """One install, which ``install_named`` finds."""
    parser.add_argument("install", help=_INSTALL)


def add_installs(parser: CommandParser) -> None:
    """One install or all of them, which ``chosen_installs`` finds."""
    parser.add_argument("install", nargs="?", help=_INSTALL)
    parser.add_argument("--all", action="store_true", help="every install")


def install_named(named: str) -> Install:
    """The install with this id or name. Raises ``CommandError``, also when several have the name."""
    found = list(Install.objects.filter(public_id=named)) or list(Install.objects.filter(name=named).order_by("pk"))
    if not found:
        raise CommandError(f"No install is called {named!r}; lane_status --json lists names and ids.")
    if len(found) > 1:
        ids = ", ".join(install.public_id for install in found)
        raise CommandError(f"{len(found)} installs are called {named!r}; name one by its id: {ids}.")
    return found[0]


def chosen_installs(options: dict[str, Any]) -> list[Install]:
    """The installs of ``add_installs``. Raises ``CommandError``."""
    if bool(options["install"]) == options["all"]:
        raise CommandError("Name one install, or say --all.")
    return list(Install.objects.order_by("pk")) if options["all"] else [install_named(options["install"])]


def report_each_install(
    options: dict[str, Any], act: Callable[[Install], Report], show: Callable[[list[Report]], None]
) -> None:
    """Call ``act`` for each chosen install, and ``show`` with its results.

    A ``CommandError`` about one install doesn't keep the others from being changed and reported. One ``CommandError``
    with all messages is raised at the end.
    """
    reports, problems = [], []
    for install in chosen_installs(options):
        try:
            reports.append(act(install))
        except CommandError as error:
            problems.append(str(error))
    if reports or not problems:
        show(reports)
    if problems:
        raise CommandError("\n".join(dict.fromkeys(problems)))


def add_identifier(parser: CommandParser) -> None:
    """The identifier of a customer, which ``identifier_in`` reads."""
    parser.add_argument("identifier", help="the whole identifier; - reads it from the input")


def identifier_in(options: dict[str, Any]) -> str:
    """The identifier from the arguments or the input, trimmed like those in calls. Raises ``CommandError``."""
    given: str = options["identifier"]
    identifier = input_line() if given == "-" else given.strip()
    if not identifier:
        raise CommandError("The identifier is empty.")
    if storable(identifier) is None:
        raise CommandError("The identifier is not UTF-8.")
    return identifier


def input_line(prompt: str = "") -> str:
    """The next line of the input, trimmed. With a ``prompt`` a person types it unseen. Raises ``CommandError``."""
    try:
        is_typed = prompt and sys.stdin.isatty()
        return (getpass.getpass(prompt) if is_typed else sys.stdin.readline()).strip()
    except UnicodeDecodeError:
        raise CommandError("The input is not UTF-8.") from None
    except EOFError:
        raise CommandError("Nothing was entered.") from None


def asked(question: str) -> str:
    """The person's answer to a question. Raises ``CommandError`` when the input has ended, as in a scheduled job."""
    try:
        return input(question).strip()
    except EOFError:
        raise CommandError("Nobody is there to answer. Add --yes to agree.") from None


def who() -> str:
    """The person at the command line. A container may run under a number that no user has."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"[:_LONGEST_NAME]
