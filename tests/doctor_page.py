"""Write docs/doctor.md from the registry of the doctor's checks (``make settings``)."""

from pathlib import Path

import django
from django.apps import apps

PAGE = Path(__file__).resolve().parent.parent / "docs" / "doctor.md"

HEAD = """# The doctor

`make settings` writes this page from the checks in `audiences/operations/doctor`, and `tests/test_doctor.py` fails when
it is stale.

```sh
python manage.py doctor INSTALL          # the id or the name of an install; --all for every install
python manage.py doctor INSTALL --json   # the same for a program
```

The command exits with 1 when a line is *bad*. In the admin, *Doctor* on the page of an install shows the same lines; it
needs the permission *Can send a test customer*, which operators have. Nothing else runs the checks.

- Each line has a **state**, the **evidence**, how old the evidence is, and the **cure** where one is needed.
- *good*: it works, as just seen. *warning*: it works, and a person should look. *bad*: events are lost or will be, or
  members are wrong. *unknown*: it could not be seen; the line says what would make it visible.
- The checks ask ODP, Lytics and the public address now and write nothing there. A call to the public address carries
  a body that this service has signed, and the webhook answers it without storing it.
- All checks of one install end within a minute; a check that gets no time is *unknown*. An error in a check is a line.
- The lines about the Lytics job need an API token of the Lytics account. All else works without one.
- With JSON, the output is `{"bad": …, "installs": [{"install_id", "name", "lines": [{"check", "title", "group",
  "state", "evidence", "cure", "at", "about", "age_seconds"}]}]}`.
"""

TAIL = """## What it can't see

- Whether the Api app's consent is opted in: ODP doesn't show it. The test customer shows the effect.
- Customers whom ODP deleted for compliance: for 30 days it accepts writes about them and shows nothing.
- Quotas, IP filters and the time limit of a call at Lytics: its API doesn't show them.
- PostgreSQL's disk: set `DATABASE_HIGH_WATER_BYTES` below its size.
- Who is missing in which audience: the doctor looks at preconditions, and at one customer.
"""


def page() -> str:
    from audiences.operations import doctor

    parts = [HEAD]
    for group in doctor.GROUPS:
        rows = [
            f"| {one.title} | `{one.name}` | {one.what.replace('``', '`')} |"
            for one in doctor.CHECKS.values()
            if one.group == group
        ]
        parts.append("\n".join([f"## {group}\n", "| line | check | what it checks |", "|---|---|---|", *rows]) + "\n")
    return "\n".join([*parts, TAIL])


if __name__ == "__main__":
    if not apps.ready:
        django.setup()
    PAGE.write_text(page(), encoding="utf-8")
