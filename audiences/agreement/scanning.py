"""The first pass of an audit: store the identifiers of all members in Lytics' scan."""

from collections.abc import Sequence

from django.conf import settings
from django.utils.timezone import now

from audiences import lytics_account, naming
from audiences.agreement.steps import Ended, Step, Wait
from audiences.models import Audience, Audit, ScannedMember
from audiences.receiving.audience_lookup import BY_SLUG
from lytics.api import members
from lytics.api.members import Member
from lytics.api.outcomes import Outcome
from lytics.api.webhook_settings import LYTICS_ID
from lytics.identifiers import is_identifier

# The most times that a scan is started. It starts again when its token has expired.
STARTS = 5
# The members after which a scan is checked for members that it gave before.
LOOK_EVERY = 10_000
# Seconds before the next request after a request without a response.
AGAIN_SECONDS = 10.0
NOT_CONNECTED = "Lytics was not asked, because the install has no Lytics API token."
BY_NAME = "Lytics was not asked, because its calls name the audience by its slug alone."
OF_TESTS = "Lytics was not asked, because this service made the audience, for its test customers."


def step(audit: Audit) -> Step:
    """Read one page. Without a Lytics API token, skip the scan: the audit continues with ODP."""
    client = lytics_account.client_of(audit.install)
    if client is None or (unknown := _unknown_to_lytics(audit.audience)):
        return Step({"phase": Audit.Phase.SETTLE, "note": unknown if client else NOT_CONNECTED})
    if audit.scan_began_at is None and (wait := _until_calls_show(audit)):
        return wait
    began_at = audit.scan_began_at or now()
    field = audit.install.identifier_field
    fields = [field] if field == LYTICS_ID else [field, LYTICS_ID]
    pages = members.scan(client, audit.audience.segment_id, fields=fields, token=audit.scan_token)
    page = next(pages)
    if page.is_expired:
        return _again(audit, page.answer.reason)
    if not page.answer.is_ok:
        if page.answer.outcome is Outcome.RETRY_LATER:
            return Step(seconds=AGAIN_SECONDS)
        raise Ended(f"Lytics rejects the scan: {page.answer.reason}")
    total = _least(page.total, audit.lytics_size if audit.scan_began_at or page.total is None else None)
    if page.is_last and _is_short(audit.scanned + len(page.members), total):
        return _again(audit, f"it ended after {audit.scanned + len(page.members):,} of {total:,} members")
    _store(audit, page.members, field)
    if not page.is_last and _repeats(audit, page.members, field):
        return _again(audit, "it gives the same members again and again")
    changes = {
        "scan_began_at": began_at,
        "scan_token": page.next_token,
        "scanned": audit.scanned + len(page.members),
        "lytics_size": audit.lytics_size if total is None else total,
    }
    if any(member.holds_list(field) for member in page.members):
        changes["array_option"] = "on" if audit.install.forget_missing_identifiers else "off"
    if page.is_last:
        _check_named(audit, members_seen=audit.scanned + len(page.members), field=field)
        changes["phase"] = Audit.Phase.SETTLE
    return Step(changes, seconds=min(1 / settings.AUDIT_LYTICS_REQUESTS_PER_SECOND, Wait.LONG - 0.1))


def _unknown_to_lytics(audience: Audience) -> str:
    """Why Lytics can't be asked about an audience; empty if it can."""
    if audience.segment_id == naming.TEST_SEGMENT_ID:
        return OF_TESTS
    return BY_NAME if audience.segment_id.startswith(BY_SLUG) else ""


def _store(audit: Audit, found: Sequence[Member], field: str) -> None:
    """Store the identifiers of the members on a page, each with the profile whose list has it."""
    profiles = {
        identifier: _profile(member) if member.holds_list(field) else ""
        for member in found
        for identifier in member.identifiers(field)
        if is_identifier(identifier, settings.PLACEHOLDER_IDENTIFIERS)
    }
    ScannedMember.objects.bulk_create(
        [ScannedMember(audit=audit, identifier=one, profile=profile) for one, profile in profiles.items()],
        ignore_conflicts=True,
    )


def _profile(member: Member) -> str:
    """The Lytics ID of the member; empty if it isn't a usable identifier."""
    found = next(iter(member.identifiers(LYTICS_ID)), "")
    return found if is_identifier(found, settings.PLACEHOLDER_IDENTIFIERS) else ""


def _until_calls_show(audit: Audit) -> Step | None:
    """A wait until Lytics' API has had time to show the transitions that it sent before the audit began.

    People with later events aren't compared. Somebody whose exit was received just before, and whom Lytics still lists,
    would look like a difference. How far Lytics' API lags behind its calls isn't documented.
    """
    assert audit.started_at is not None
    at = now()
    since = min(audit.started_at, at)  # a later time was stored before a clock was set back
    left = settings.AUDIT_SCAN_DELAY_SECONDS - (at - since).total_seconds()
    return Step({"started_at": since}, seconds=max(Wait.LONG, left)) if left > 0 else None


def _least(total: int | None, before: int | None) -> int | None:
    """The smallest total of a scan so far. People who enter during the scan raise the total, but may be on no page."""
    return before if total is None else min(total, total if before is None else before)


def _is_short(seen: int, total: int | None) -> bool:
    """Whether a scan has far fewer members than its total. A small gap is normal: members change during a scan."""
    return total is not None and seen < total * 0.99 - min(10, total / 5)


def _repeats(audit: Audit, found: Sequence[Member], field: str) -> bool:
    """Whether most members of the scan were in it before, which is counted after each ``LOOK_EVERY`` of them.

    A scan may give a member twice, and where the field is missing, no member has an identifier to count.
    """
    seen = audit.scanned + len(found)
    if seen // LOOK_EVERY == audit.scanned // LOOK_EVERY or not all(member.identifiers(field) for member in found):
        return False
    return ScannedMember.objects.filter(audit=audit).count() * 2 < seen


def _check_named(audit: Audit, *, members_seen: int, field: str) -> None:
    """End the audit if most members lack the identifier field, because they would look like people who left."""
    named = ScannedMember.objects.filter(audit=audit).count()
    if named * 2 < members_seen:
        raise Ended(
            f"Lytics' scan has {members_seen:,} members, and only {named:,} identifiers in the field {field}."
            " Check the identifier field of the install, and whether Lytics' API may show it."
        )


def _again(audit: Audit, why: str) -> Step:
    """Begin the scan again: members missing from a partial scan would look as if they had left."""
    if audit.scan_starts + 1 >= STARTS:
        raise Ended(f"Lytics' scan did not finish in {STARTS} attempts: {why}")
    changes = {"scan_token": "", "scanned": 0, "scan_began_at": None, "scan_starts": audit.scan_starts + 1}
    return Step(changes, forgets_scan=True)
