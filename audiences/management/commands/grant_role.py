"""The rights of the database role that web, workers and beat log in with."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection
from django.db.utils import ProgrammingError

from audiences.operations.db_role import grant, may_make_temporary_tables, problem_of


class Command(BaseCommand):
    help = "Give a database role exactly what the processes need. Run it as the owner of the tables, after migrate."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("role", help="made beforehand: CREATE ROLE name LOGIN PASSWORD '…'")

    def handle(self, *args: Any, **options: Any) -> None:
        if problem := problem_of(options["role"]):
            raise CommandError(problem)
        try:
            rights = grant(options["role"])
        except ProgrammingError as error:
            raise CommandError(str(error).strip()) from error
        for table, words in rights.items():
            self.stdout.write(f"{table:32} {words}")
        if may_make_temporary_tables(options["role"]):
            self.stderr.write(
                f"{options['role']} can still make temporary tables. The owner of the database can end that:"
                f" REVOKE TEMPORARY ON DATABASE {connection.settings_dict['NAME']} FROM PUBLIC"
            )
