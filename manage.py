#!/usr/bin/env python
"""Django's command line for this project."""

import os
import select
import sys

# SQLSTATEs of PostgreSQL for a table, a column and a function that the database lacks.
_LACKING = ("42P01", "42703", "42883")


def main() -> None:
    try:
        "".join(sys.argv).encode()
    except UnicodeEncodeError:  # PostgreSQL can't store or compare it
        sys.exit("An argument is not UTF-8.")
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lytics_sync.settings")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line
    from django.db import OperationalError, ProgrammingError

    try:
        execute_from_command_line(sys.argv)
        sys.stdout.flush()
    except (ImproperlyConfigured, OperationalError) as error:
        if "--traceback" in sys.argv:
            raise
        # A wrong setting, or a database that doesn't answer: its own sentence is all that helps.
        sys.exit(str(error).strip())
    except ProgrammingError as error:
        if "--traceback" in sys.argv or getattr(error.__cause__, "sqlstate", "") not in _LACKING:
            raise
        first_line = str(error).partition("\n")[0]
        sys.exit(f"The database isn't that of this version: {first_line}. Run: python manage.py migrate")
    except KeyboardInterrupt:
        print("\nInterrupted. Workers finish what was requested.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        if not _reader_left():
            raise
        sys.exit(141)


def _reader_left() -> bool:
    """Whether the program that reads the output has ended, such as ``head``. Then the rest is dropped."""
    output = select.poll()
    output.register(sys.stdout, select.POLLOUT)
    # Not by writing more: without a buffer, nothing is left to be written.
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


if __name__ == "__main__":
    main()
