"""Front page alerts for audiences whose newest audit found differences or had no result."""

from django.db.models import Q

from audiences.admin.pages import list_url, url_of
from audiences.agreement import words
from audiences.front.alerts import Alert, and_more, buttons, listed_rows
from audiences.models import Audit

KIND = "audit"


def alerts() -> list[Alert]:
    bad = Audit.objects.filter(Q(differing__gt=0) | ~Q(problem=""), is_newest=True)
    found, total = listed_rows(bad.select_related("audience__install", "install").order_by("-id"))
    return [*map(_alert, found), *and_more(KIND, total, "audits with differences or no result", list_url(Audit))]


def _alert(audit: Audit) -> Alert:
    what = "could not be audited" if audit.problem else "differs between Lytics, this service and ODP"
    return Alert(
        KIND,
        f"{audit.audience} {what} ({audit.install})",
        f"The last audit {words.result(audit)}." if not audit.problem else audit.problem,
        audit.ended_at,
        url_of(audit),
        "held" if audit.problem else "bad",
        todo="Look at the people and the reasons, then press Repair." if not audit.problem else "Audit it again.",
        offers=(buttons(audit, "repair"),),
        install=audit.install_id,
        cause="problem" if audit.problem else "differs",
    )
