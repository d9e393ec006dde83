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
    from django.core.management import execute_from_command_line

    try:
        execute_from_command_line(sys.argv)
    except KeyboardInterrupt:
        print("\nInterrupted. Workers finish what was requested.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
