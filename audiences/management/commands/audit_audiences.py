"""Compare audiences person by person in Lytics, here and in ODP."""

import json
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction
from django.db.models import Q

from audiences import naming
from audiences.agreement import audits, words
from audiences.management import arguments
from audiences.models import Audience, Audit, Difference, Install

WHO = "command audit_audiences"


class Command(BaseCommand):
    help = "Audit the audiences of an install now. Exit code 1 when one differs or fails."

    def add_arguments(self, parser: CommandParser) -> None:
        arguments.add_install(parser)
        parser.add_argument(
            "--audience",
            action="append",
            default=[],
            metavar="SLUG",
            help="audit only this audience (slug or ODP id); repeatable",
        )
        how = parser.add_mutually_exclusive_group()
        how.add_argument("--full", action="store_true", help="every person, in Lytics and in ODP")
        how.add_argument("--sample", type=int, metavar="N", help="every member in Lytics, about N people in ODP")
        parser.add_argument("--people", action="store_true", help="name the people who differ")
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["sample"] is not None and options["sample"] < 1:
            raise CommandError("--sample takes a number of at least 1.")
        mode = Audit.Mode.FULL if options["full"] else Audit.Mode.SAMPLE if options["sample"] else Audit.Mode.QUICK
        asked = _ask(options, mode)
        if mode != Audit.Mode.QUICK:
            least = settings.AUDIT_SCAN_DELAY_SECONDS + settings.AUDIT_SETTLE_SECONDS
            self.stderr.write(f"{len(asked)} audits; each waits {least:g} s for calls and deliveries under way.")
        done = []
        for finished in audits.finish(asked):
            done.append(finished)
            if not options["json"]:
                self.stdout.write(f"{finished.audience}: {words.result(finished)}{_note(finished)}")
                if arrays := words.arrays(finished):
                    self.stdout.write(f"  {arrays}")
                for line in _people(finished) if options["people"] else []:
                    self.stdout.write(f"  {line['identifier']}: {line['kind']}. {line['why']}")
        if not asked and not options["json"]:
            self.stdout.write(f"{options['install']} has no audience in ODP to audit.")
        if options["json"]:
            done.sort(key=lambda audit: audit.pk)
            reports = [_report(audit, with_people=options["people"]) for audit in done]
            self.stdout.write(json.dumps({"audits": reports}, default=str))
        if len(done) < len(asked):
            raise CommandError(f"{options['install']} was switched off. Its audits go on when it is on again.")
        if any(audit.differing or audit.problem or audit.only_in_odp or words.compared_nobody(audit) for audit in done):
            raise SystemExit(1)


@transaction.atomic
def _ask(options: dict[str, Any], mode: str) -> list[Audit]:
    """Request an audit of each audience. If one has an unfinished audit, request none and raise ``CommandError``."""
    asked = []
    install = arguments.install_named(options["install"])
    if not install.enabled:
        raise CommandError(f"{install} is switched off, and its audits wait until it is on.")
    for audience in _audiences(install, options["audience"]):
        audit = audits.ask(audience, mode=mode, by=WHO, sample=options["sample"] or 0)
        if audit is None:
            raise CommandError(f"An audit of {audience} is under way. Wait for it, or stop it in the admin.")
        asked.append(audit)
    return asked


def _audiences(install: Install, slugs: list[str]) -> list[Audience]:
    """The named audiences; without names all of Lytics, except retired ones, whom Lytics may no longer have."""
    made = Audience.objects.filter(install=install, provisioned_at__isnull=False).select_related("install", "lane")
    if slugs:
        made = made.filter(Q(latest_slug__in=slugs) | Q(odp_id__in=slugs))
        known = {name for audience in made for name in (audience.latest_slug, audience.odp_id)}
        if missing := set(slugs) - known:
            raise CommandError(f"{install} has no audience in ODP with the slug {', '.join(sorted(missing))}.")
    else:
        made = made.filter(lane__retired_sequence=None).exclude(segment_id=naming.TEST_SEGMENT_ID)
    return list(made.order_by("odp_id"))


def _note(audit: Audit) -> str:
    return f" ({audit.note})" if audit.note else ""


def _report(audit: Audit, *, with_people: bool) -> dict[str, Any]:
    report = {
        "audit": audit.pk,
        "audience": audit.audience.odp_id,
        "mode": audit.mode,
        "started_at": audit.started_at,
        "ended_at": audit.ended_at,
        "problem": audit.problem,
        "note": audit.note,
        "lytics_size": audit.lytics_size,
        "ledger_size": audit.ledger_size,
        "odp_estimate": None if audit.odp_low is None else [audit.odp_low, audit.odp_high],
        "odp_above_ledger": words.odp_above_ledger(audit),
        "only_in_odp": audit.only_in_odp,
        "compared_with_lytics": audit.compared_with_lytics,
        "compared_with_odp": audit.compared_with_odp,
        "in_motion": audit.moving,
        "differing": audit.differing,
        "explained": audit.explained,
        "array_identifiers": _arrays(audit),
    }
    return {**report, "people": _people(audit)} if with_people else report


def _arrays(audit: Audit) -> dict[str, Any] | None:
    if not audit.array_option:
        return None
    return {
        "forget_missing_identifiers": audit.array_option == "on",
        "people": audit.compared_with_lytics,
        "wrong": audit.left_list + audit.merged,
        "left_list": audit.left_list,
        "merged_profiles": audit.merged,
        "is_at_least": words.has_more(audit),
    }


def _people(audit: Audit) -> list[dict[str, str]]:
    found = Difference.objects.filter(audit=audit)
    return [{"identifier": one.identifier, "kind": one.get_kind_display(), "why": one.why} for one in found]
