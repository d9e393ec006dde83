"""What ODP says when a person asks: whether a key works, and which audiences a customer is in."""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass

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
    """Whether ODP takes the install's key: works, refused, unreachable or wrong region, in words."""
    answer = _ask(install, host_of(api_key=install.odp_api_key, region=install.region, host=install.odp_host))
    if answer.outcome is Outcome.DELIVERED:
        return KeyCheck(True, "ODP takes the API key.")
    if answer.outcome is not Outcome.UNAUTHORISED:
        return KeyCheck(False, f"ODP could not be asked whether the API key works. {answer.reason}")
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
        f"ODP refuses the API key ({answer.reason}). Copy the private key again from ODP,"
        " Settings > APIs > Private, and see that it has not been revoked.",
    )


def _ask(install: Install, host: str) -> Answer:
    return Client(host=host, api_key=install.odp_api_key).call("GET", "/v3/segments", seconds=SECONDS)


@dataclass(frozen=True)
class Live:
    """ODP's own view of one customer: whether it knows the identifier, and the audiences, of those asked about."""

    known: bool
    audiences: frozenset[str]
    seconds: float
    problem: str = ""


_QUERY = """query($id: String, $among: [String]) {
  feature: customer(fs_user_id: $id) { audiences(subset: $among) { edges { node { name state } } } }
  web: customer(web_user_id: $id) { audiences(subset: $among) { edges { node { name state } } } }
}"""


def audiences_of(install: Install, identifier: str, among: Iterable[str]) -> Live:
    """Ask ODP over GraphQL, by the identifier of Feature Experimentation and by Web Experimentation's."""
    started = time.monotonic()
    client = Client(
        host=host_of(api_key=install.odp_api_key, region=install.region, host=install.odp_host),
        api_key=install.odp_api_key,
    )
    body = json.dumps({"query": _QUERY, "variables": {"id": identifier, "among": list(among)}}).encode()
    answer = client.call("POST", "/v3/graphql", body=body, seconds=SECONDS)
    seconds = time.monotonic() - started
    if answer.outcome is not Outcome.DELIVERED or not isinstance(answer.json, dict):
        return Live(False, frozenset(), seconds, answer.reason or "ODP gave no answer that could be read")
    data = answer.json.get("data") or {}
    feature, web = data.get("feature"), data.get("web")
    if feature is None and web is None:
        return Live(False, frozenset(), seconds, _other_errors(answer.json))
    by_feature, by_web = _qualified(feature), _qualified(web)
    problem = ""
    if by_feature != by_web:
        problem = "ODP answers differently by fs_user_id and by web_user_id; only what both say is shown."
    return Live(True, by_feature & by_web, seconds, problem)


def _qualified(customer: object) -> frozenset[str]:
    edges = ((customer or {}).get("audiences") or {}).get("edges") or []  # type: ignore[attr-defined]
    return frozenset(edge["node"]["name"] for edge in edges if edge["node"].get("state", "qualified") == "qualified")


def _other_errors(body: dict[str, object]) -> str:
    """What is wrong apart from ODP not knowing the identifier, which is an answer."""
    errors = body.get("errors")
    for error in errors if isinstance(errors, list) else []:
        if "INVALID_IDENTIFIER" not in json.dumps(error).upper().replace("INVALIDIDENTIFIER", "INVALID_IDENTIFIER"):
            return str(error.get("message") or error)[:300]
    return ""
