#!/usr/bin/env python
"""Django's command line for this project."""

import os
import sys


def main() -> None:
    try:
        "".join(sys.argv).encode()
    except UnicodeEncodeError:  # PostgreSQL can't store or compare it
        sys.exit("An argument is not UTF-8.")
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lytics_sync.settings")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line
    from django.db import OperationalError

    try:
        execute_from_command_line(sys.argv)
    except (ImproperlyConfigured, OperationalError) as error:
        if "--traceback" in sys.argv:
            raise
        # A wrong setting, or a database that doesn't answer: its own sentence is all that helps.
        sys.exit(str(error).strip())
    except KeyboardInterrupt:
        print("\nInterrupted. Workers finish what was requested.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
