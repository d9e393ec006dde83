"""Ask ODP whether it accepts an API key, when a person presses *Check the key* or saves an install."""

from dataclasses import dataclass

from audiences.delivery import drafts
from audiences.encryption import UNREADABLE, Unreadable
from audiences.models import Install
from odp.client import Client
from odp.outcomes import Answer, Outcome
from odp.regions import HOSTS, host_of, region_of

SECONDS = 5.0
NAMES = {"us": "United States", "eu": "Europe", "au": "Asia-Pacific"}


@dataclass(frozen=True)
class KeyCheck:
    works: bool
    words: str


def check_key(install: Install) -> KeyCheck:
    """Ask ODP whether it accepts the install's key, and store the result: why it doesn't, or that it does."""
    found = _check(install)
    drafts.note_key(install.pk, problem="" if found.works else found.words)
    return found


def _check(install: Install) -> KeyCheck:
    if isinstance(install.odp_api_key, Unreadable):
        return KeyCheck(False, f"The stored API key {UNREADABLE}. Put the old encryption key back, or enter it again.")
    host = host_of(api_key=install.odp_api_key, region=install.region, host=install.odp_host)
    answer = _ask(install, host)
    if answer.outcome is Outcome.DELIVERED:
        return KeyCheck(True, "ODP accepts the API key.")
    if answer.outcome is not Outcome.UNAUTHORISED:
        return KeyCheck(
            False,
            f"ODP could not be reached at {host} to check the API key. {answer.reason}. Check the ODP region and"
            " host, and that this server can reach that address; then press Check the key.",
        )
    if not install.odp_host:
        chosen = install.region or region_of(install.odp_api_key)
        for region, host in HOSTS.items():
            if region != chosen and _ask(install, host).outcome is Outcome.DELIVERED:
                return KeyCheck(
                    False,
                    f"Wrong region: the API key belongs to {NAMES[region]}, and {NAMES[chosen]} is chosen."
                    f" Set the ODP region to {NAMES[region]}.",
                )
    return KeyCheck(
        False,
        f"ODP rejects the API key ({answer.reason}). Copy the private key again from ODP,"
        " Settings > APIs > Private, and check that it has not been revoked.",
    )


def _ask(install: Install, host: str) -> Answer:
    return Client(host=host, api_key=install.odp_api_key).call("GET", "/v3/segments", seconds=SECONDS)
