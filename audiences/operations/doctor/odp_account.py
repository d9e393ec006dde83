"""Checks of the ODP account: key, region, rights, consent, each audience, one customer, other writers."""

from collections.abc import Iterator
from datetime import timedelta

from django.conf import settings
from django.db.models import F, Q
from django.utils.timezone import now

from audiences.delivery.odp_account import mechanism_of, same_account
from audiences.encryption import UNREADABLE, Unreadable
from audiences.insight import blocks, probes, trials
from audiences.models import Audience, Install, Membership, Run, Twin
from audiences.operations.doctor.case import REQUEST_SECONDS, Case, NotCheckedError
from audiences.operations.doctor.registry import Finding, Found, bad, check, good, most_urgent, unknown, warning
from odp.client import Client
from odp.graphql import audiences_of
from odp.outcomes import Answer, Outcome
from odp.paths import CUSTOMERS, LISTS, SEGMENTS
from odp.regions import HOSTS, region_of

ODP = "ODP"
REGIONS = {"us": "United States", "eu": "Europe", "au": "Asia-Pacific"}
# The most audiences that a line names, and the most that are read in ODP because ODP's list lacks them.
NAMED, READ = 20, 5
# Audiences that guided changes and learn_account make for a short time.
OWN = ("lytics_check_", "lytics_sync_learn")
# An audience is looked at every six hours at the default interval; see operations/twins.py.
LOOK_STALE = timedelta(hours=24)
# ODP documents 90 seconds until a write shows.
SETTLED = timedelta(seconds=120)
# The most rows of the ledger that are read per audience to find one member, and the most audiences tried.
MEMBERS_READ, AUDIENCES_READ = 100, 5
GONE = "The next look creates it again if it is missing, with a resync where members were lost. Resync does so at once."
PAUSED = "It is paused, so no look reads it or creates it again. Resume it on its page to have that done."
KEY_CURE = "Copy the private key again from ODP, Settings > APIs > Private, and enter it on the install's page."


@check(ODP, "API key")
def odp_key(case: Case) -> Found:
    """Whether ODP accepts the API key now, and whether it is a private key."""
    if isinstance(case.install.odp_api_key, Unreadable):
        cure = "Put the old encryption key back into FIELD_ENCRYPTION_KEYS, or enter the API key again."
        return bad(f"The stored API key {UNREADABLE}.", cure)
    key, found = case.api_key, case.segments
    if not isinstance(found, Answer):
        return good(f"ODP accepts the key at {case.host} and lists {len(found):,} audiences.")
    if found.outcome is Outcome.UNAUTHORISED:
        if "." not in key:
            return bad(f"ODP rejects the key ({found.reason}). It has no dot, so it looks like a public key.", KEY_CURE)
        return bad(f"ODP rejects the key ({found.reason}).", f"{KEY_CURE} See whether it was revoked.")
    cure = "Check the ODP region and host of the install, and that this server can reach that address."
    return bad(f"ODP could not be asked at {case.host}: {found.reason or 'the response lists no audiences'}.", cure)


@check(ODP, "Region")
def odp_region(case: Case) -> Found:
    """Whether the region or host of the install is that of its API key. A wrong one accepts nothing."""
    key, chosen = case.api_key, case.install.region
    of_key = region_of(key)
    answer = case.segments if isinstance(case.segments, Answer) else None
    is_accepted = answer is None
    if case.install.odp_host and case.host not in HOSTS.values():
        words = f"The install has a host of its own, {case.host}, which is none of ODP's regions."
        return good(f"{words} It accepts the key.") if is_accepted else unknown(f"{words} It did not accept the key.")
    here = next(region for region, host in HOSTS.items() if host == case.host)
    if is_accepted and here != of_key:
        words = f"ODP accepts the key in {REGIONS[here]}, and by its form it is of {REGIONS[of_key]}."
        return warning(words, "Set the ODP region to Detect from the key, unless Optimizely told you to choose one.")
    if answer is None:
        return good(f"The key is of {REGIONS[here]}, and ODP accepts it there.")
    if answer.outcome is not Outcome.UNAUTHORISED:
        return unknown("ODP could not be asked.", "Look at the line about the API key.")
    for region, host in HOSTS.items():
        if region != here and _is_accepted(case, host):
            words = f"The key belongs to {REGIONS[region]}, and {REGIONS[here]} is {'chosen' if chosen else 'used'}."
            return bad(words, f"Set the ODP region of the install to {REGIONS[region]}.")
    return unknown("No region of ODP accepts the key.", "Look at the line about the API key.")


def _is_accepted(case: Case, host: str) -> bool:
    client = Client(host=host, api_key=case.api_key, ends_at=case.ends_at)
    return client.call("GET", SEGMENTS, seconds=REQUEST_SECONDS / 2).outcome is Outcome.DELIVERED


@check(ODP, "Rights of the key")
def odp_rights(case: Case) -> Found:
    """Whether the key may read what the install's mechanism needs in ODP: customer fields or lists."""
    name = case.install.mechanism
    if name == "passthrough":
        if not settings.ODP_PASSTHROUGH_DEFINITION:
            cure = "Ask Optimizely for the body of a passthrough audience, and set ODP_PASSTHROUGH_DEFINITION to it."
            return warning("Without a definition to write, each audience has to be created in ODP by hand.", cure)
        return unknown("Only the first audience will show whether ODP has enabled passthrough audiences.")
    path, what = (LISTS, "lists") if name == "list" else (CUSTOMERS, "customer fields")
    answer = case.odp.call("GET", path, seconds=REQUEST_SECONDS)
    if answer.outcome is Outcome.DELIVERED:
        return good(f"The key may read {what} (in {answer.seconds * 1000:.0f} ms).")
    if answer.outcome is Outcome.UNAUTHORISED:
        return bad(f"The key may not read {what} ({answer.reason}).", KEY_CURE)
    return unknown(f"ODP did not show its {what}: {answer.reason}.", "Ask again in a minute.")


@check(ODP, "Consent, by the test customer")
def odp_consent(case: Case) -> Found:
    """Whether ODP shows the test customer that it accepted. With consent opted out, it shows nothing."""
    proof = probes.proof_of(case.install)
    if proof.word == "none" and trials.is_retired(case.install):
        return unknown(probes.RETIRED, probes.RETIRED_CURE)
    if proof.word == "none":
        return unknown(probes.none_sent(case.install), "Press Send a test customer on the install's page.")
    if proof.word == "proven":
        return good("ODP showed the last test customer in its audience, and later no longer.", at=proof.at)
    if proof.word == "overdue":
        why = proof.why.removesuffix(proof.cure).rstrip()
        return warning(f"No test customer was sent lately. {why}", proof.cure, at=proof.at)
    cure = "Correct what this names, then press Send a test customer on the install's page."
    return bad(f"The last test customer failed. {proof.why}", cure, at=proof.since)


@check(ODP, "Audiences in ODP")
def odp_audiences(case: Case) -> Found:
    """Whether ODP's list has each audience now, and whether the last look found it as this service created it."""
    there = case.segments
    made = list(
        Audience.objects.filter(install=case.install, provisioned_at__isnull=False)
        .select_related("twin", "lane")
        .order_by(F("twin__looked_at").asc(nulls_first=True), "pk")
    )
    if not made:
        return unknown("No audience has been created in ODP yet.", "It is created with the first event from Lytics.")
    if isinstance(there, Answer):
        raise NotCheckedError("ODP did not list its audiences.", "Look at the line about the API key.")
    found = [*_gone(case, [one for one in made if one.odp_id not in there]), *_looked(made), *_blocked(made)]
    named = most_urgent(found, NAMED)
    looks = [twin.looked_at for one in made if (twin := _twin(one))]
    looked_or_made = [twin.looked_at if (twin := _twin(one)) else one.provisioned_at for one in made]
    stale = sum(at is not None and at <= now() - LOOK_STALE for at in looked_or_made)
    words = f"{len(made) - len({one.about for one in found}):,} of {len(made):,} are as this service created them."
    at = min(looks, default=None)
    if stale:
        cure = "Set LOOK_MINUTES above 0 and start the worker and beat; paused audiences are not looked at."
        return [*named, warning(f"{words} Not looked at for a day: {stale:,}.", cure, at=at)]
    return named or good(words, at=at)


def _twin(audience: Audience) -> Twin | None:
    return getattr(audience, "twin", None)


def _gone(case: Case, lacking: list[Audience]) -> Iterator[Finding]:
    """Audiences that ODP's list lacks. The first are also read, because ODP doesn't document that its list is complete.
    Paused ones come last, because they may be missing on purpose.
    """
    for place, audience in enumerate(sorted(lacking, key=lambda one: one.lane.paused_at is not None)):
        words, make = "ODP's list lacks it. It was not read.", warning
        if place < READ:
            mechanism = mechanism_of(case.install, audience.mechanism)
            found = mechanism.look(
                case.odp, audience.odp_id, seconds=REQUEST_SECONDS, accepted=audience.accepted_definition
            )
            if not isinstance(found, Answer):
                if not found.missing:
                    continue
                words, make = f"ODP has no {' and no '.join(found.missing)}.", bad
        make, cure = (warning, PAUSED) if audience.lane.paused_at else (make, GONE)
        yield make(words, cure, about=audience.odp_id)


def _looked(made: list[Audience]) -> Iterator[Finding]:
    cures = {
        Twin.Finding.MISSING: "It is being created again. If this stays, press Unblock or Resync on its page.",
        Twin.Finding.CHANGED: "On its page, press Take ours or Accept definition.",
        Twin.Finding.WRONG: "Correct in ODP what this names, then press Unblock on its page.",
    }
    for audience in made:
        twin = _twin(audience)
        if twin and twin.finding:
            finding = Twin.Finding(twin.finding)
            make, cure = warning if finding is Twin.Finding.CHANGED else bad, cures[finding]
            make, cure = (warning, PAUSED) if audience.lane.paused_at else (make, cure)
            yield make(str(twin.problem), cure, at=twin.looked_at, about=audience.odp_id)


def _blocked(made: list[Audience]) -> Iterator[Finding]:
    for audience in made:
        if audience.lane.blocked_at:
            cure = blocks.remedy(audience.lane, where=" on its page")
            words = f"Blocked: {audience.lane.block_reason}"
            yield bad(words, cure, at=audience.lane.blocked_at, about=audience.odp_id)


@check(ODP, "Unknown audiences in ODP")
def odp_unknown(case: Case) -> Found:
    """Whether ODP has audiences with the install's prefix that no audience here uses, as after a restored backup."""
    there, prefix = case.segments, case.install.odp_prefix
    if isinstance(there, Answer):
        raise NotCheckedError("ODP did not list its audiences.", "Look at the line about the API key.")
    ours = {odp_id for odp_id in there if odp_id.startswith(prefix) and not odp_id.startswith(OWN)}
    known = Audience.objects.filter(Q(odp_id__in=ours) | Q(former_odp_ids__overlap=list(ours)))
    ids = known.values_list("odp_id", "former_odp_ids")
    lacking = sorted(ours - {odp_id for present, former in ids for odp_id in (present, *former)})
    if not lacking:
        return good(f"This service knows each audience in ODP whose id begins with {prefix}.")
    cure = (
        "After a restored backup, have Lytics send the existing users of these audiences again, and audit them."
        " Otherwise another system makes them: give the install another prefix, or delete in ODP what nobody uses."
    )
    more = f" and {len(lacking) - NAMED:,} more" if len(lacking) > NAMED else ""
    return warning(f"ODP has {', '.join(lacking[:NAMED])}{more}, which this service doesn't know.", cure)


@check(ODP, "One customer by both identifiers")
def odp_customer(case: Case) -> Found:
    """Whether ODP shows one customer of the ledger, who isn't named, in their audience by both identifiers."""
    for audience in _largest(case.install):
        member = _settled_member(audience)
        if member is None:
            continue
        found = audiences_of(case.odp, identifier=member.identifier, odp_ids=[audience.odp_id], seconds=REQUEST_SECONDS)
        took = f"in {found.answer.seconds * 1000:.0f} ms"
        if not found.by_name:
            return bad(f"The query about a member of {audience} failed: {found.answer.reason}.", KEY_CURE)
        names = [name for name, shown in found.by_name.items() if audience.odp_id in (shown or ())]
        if len(names) == len(found.by_name):
            return good(f"ODP shows a member of {audience} by {' and '.join(names)} ({took}).")
        cure = (
            "Look at the line about consent. If it is good, find the customer on the page Find a customer: a change in"
            " ODP or a deletion for compliance, which ODP keeps up for 30 days, explains one customer. For more,"
            " press Resync on the audience's page."
        )
        by = f"only by {names[0]}" if names else "under neither identifier"
        return bad(f"The ledger has a member of {audience}, whom ODP shows {by} ({took}).", cure)
    return unknown("No member was delivered more than two minutes ago.", "Wait for events from Lytics.")


def _largest(install: Install) -> list[Audience]:
    """The largest audiences, without those that may be missing in ODP on purpose."""
    made = Audience.objects.filter(install=install, provisioned_at__isnull=False, lane__member_count__gt=0)
    made = made.filter(lane__paused_at=None, lane__retired_sequence=None)
    return list(made.order_by("-lane__member_count", "pk")[:AUDIENCES_READ])


def _settled_member(audience: Audience) -> Membership | None:
    """A member among the first hundred rows of an audience's ledger (a bounded read) who wasn't delivered just now.

    The time of an entry says nothing about that: Lytics also sends members who entered long ago.
    """
    newest = Run.objects.filter(audience=audience).order_by("-id")
    settled = newest.filter(outcome=Outcome.DELIVERED, closed_at__lte=now() - SETTLED).first()
    if settled is None and newest.exists():
        return None
    # Runs are pruned: an audience without any has delivered nothing for long.
    latest = settled.last_sequence if settled else audience.last_sequence
    rows = Membership.objects.filter(audience=audience).order_by("identifier")[:MEMBERS_READ]
    return next((row for row in rows if row.is_member and not row.rejected and row.sequence <= latest), None)


@check(ODP, "Other installs on this ODP account")
def odp_other_install(case: Case) -> Found:
    """Whether another install writes to the same ODP account, and to the same audiences."""
    every = Install.objects.exclude(pk=case.install.pk)
    others = [other for other in every if same_account(other, case.install)]
    if not others:
        return good("No other install of this service uses this ODP account.")
    every_id = {audience.odp_id for audience in case.audiences}
    ours = {audience.odp_id for audience in case.audiences if audience.provisioned_at}
    found = []
    for other in others:
        theirs = Case(other).audiences
        shared = sorted(ours & {audience.odp_id for audience in theirs if audience.provisioned_at})
        wanted = sorted(every_id & {audience.odp_id for audience in theirs})
        if shared:
            cure = "On the page of one of the two audiences, press Use another ODP id."
            words = f"{other} writes to {len(shared):,} of the same audiences: {', '.join(shared[:3])}."
            found.append(bad(words, cure, about=str(other)))
        elif wanted:
            cure = "On the page of the blocked audience, press Use another ODP id."
            words = f"{other} has {len(wanted):,} of the same ODP ids: {', '.join(wanted[:3])}."
            found.append(
                warning(f"{words} One audience of each is blocked and writes nothing.", cure, about=str(other))
            )
        else:
            cure = "Give one of the two another prefix of ODP ids, or expect audiences of one slug to be blocked."
            words = f"{other} uses this ODP account, so far with other audiences."
            found.append(warning(words, cure, about=str(other)))
    return found
