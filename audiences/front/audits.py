"""Front page alerts for audiences whose newest audit found differences or had no result."""

from django.db.models import Exists, OuterRef

from audiences.admin.pages import list_url, url_of
from audiences.agreement import audits, repairs, words
from audiences.annotations import required
from audiences.front.alerts import Alert, Extent, and_more, buttons, listed_rows
from audiences.models import Audit

KIND = "audit"


def alerts(extent: Extent) -> list[Alert]:
    unfinished = Exists(Audit.objects.filter(audience=OuterRef("audience"), ended_at=None))
    repairable = Exists(repairs.differences(OuterRef("pk")))
    newest = audits.to_act_on().annotate(is_audited_again=unfinished, can_be_repaired=repairable)
    newest = newest.select_related("audience__install", "audience__lane", "install").order_by("-id")
    found, total = listed_rows(newest, extent, by="install")
    url = list_url(Audit, **extent.of_install)
    more = and_more(KIND, total, "audits with differences or no result", url, extent)
    return [*map(_alert, found), *more]


def _alert(audit: Audit) -> Alert:
    what = "could not be audited" if audit.problem else "differs between Lytics, this service and ODP"
    is_estimate = not audit.problem and not audit.differing
    can_be_repaired = not audit.problem and (is_estimate or required(audit, "can_be_repaired", bool))
    if is_estimate:
        what = "may have members in ODP who were never here"
    return Alert(
        KIND,
        f"{audit.audience} {what} ({audit.install})",
        f"The last audit {words.result(audit)}." if not audit.problem else audit.problem,
        audit.ended_at,
        url_of(audit),
        "held" if audit.problem or is_estimate else "bad",
        todo=_todo(audit, is_estimate=is_estimate),
        offers=(buttons(audit, "repair") if can_be_repaired else buttons(audit.audience, "audit"),),
        install=audit.install_id,
        cause="problem" if audit.problem else "only in ODP" if is_estimate else "differs",
    )


def _todo(audit: Audit, *, is_estimate: bool) -> str:
    if required(audit, "is_audited_again", bool):
        return "Another audit is under way, and replaces this result."
    if audit.problem:
        return "Press Audit."
    if is_estimate:
        return (
            "An audit can't name them. See whether another system writes the field or list of the audience, and stop"
            " it. Then press Change mechanism on the install's page: the new list or field has only the members that"
            " this service knows."
        )
    if not required(audit, "can_be_repaired", bool):
        return (
            "A repair can't correct these differences. End the reasons that the audit's page gives, then press Audit."
        )
    return "Look at the people and the reasons, then press Repair."
