"""The state of every lane, with its reason and its backlog."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audiences.insight import state
from audiences.models import Install, Lane, Parked


class Command(BaseCommand):
    help = "Show every audience's lane: backlog, state and the reason for it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        lanes = [_lane(lane) for lane in Lane.objects.select_related("audience__install").order_by("audience__odp_id")]
        installs = [_install(install) for install in Install.objects.all()]
        parked = Parked.objects.filter(closed_at=None).count()
        backlog = sum(lane["backlog"] for lane in lanes)
        if options["json"]:
            self.stdout.write(
                json.dumps({"backlog": backlog, "parked": parked, "installs": installs, "lanes": lanes}, default=str)
            )
            return
        for install in installs:
            self.stdout.write(f"{install['name']}: {install['state']} {install['why']}".rstrip())
        width = max((len(lane["odp_id"]) for lane in lanes), default=8)
        self.stdout.write(f"{'audience':{width}} {'backlog':>9} {'members':>9}  state")
        for lane in lanes:
            why = f" — {lane['why']}" if lane["why"] else ""
            self.stdout.write(
                f"{lane['odp_id']:{width}} {lane['backlog']:>9,} {lane['members']:>9,}  {lane['state']}{why}"
            )
        self.stdout.write(f"{len(lanes)} lanes, {backlog:,} events waiting, {parked:,} items parked")


def _install(install: Install) -> dict[str, Any]:
    shown = state.of_install(install)
    return {"install_id": install.public_id, "name": install.name, "state": shown.word, "why": shown.why}


def _lane(lane: Lane) -> dict[str, Any]:
    audience, shown = lane.audience, state.of_lane(lane)
    return {
        "install_id": audience.install.public_id,
        "odp_id": audience.odp_id,
        "segment_id": audience.segment_id,
        "slug": audience.slug,
        "latest_slug": audience.latest_slug,
        "last_sequence": audience.last_sequence,
        "delivered_sequence": lane.delivered_sequence,
        "backlog": state.backlog(lane),
        "members": lane.member_count,
        "state": shown.word,
        "why": shown.why,
        "warnings": state.warnings(lane),
        "last_served_at": lane.last_served_at,
    }
