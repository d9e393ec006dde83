"""Summarises new parts of the log in the BRIN index that finds a customer."""

import structlog
from django.db import OperationalError, ProgrammingError, connection, transaction

from audiences.models import BLOCKS_PER_RANGE

log = structlog.get_logger(__name__)

# Blocks at the end of the log that several receivers may still be filling.
OPEN_BLOCKS = 64


def summarise() -> int:
    """Summarise the closed BRIN ranges of the log; returns their number. The rest is searched without the index.

    Vacuum has priority: a range can't be summarised during a vacuum of the log, and waiting for the lock longer
    than ``deadlock_timeout`` would cancel the vacuum.
    """
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '100ms'")
            # Called for each closed range. A range that is summarised already costs one read of the index's map.
            cursor.execute(
                "SELECT summarise_events(%(open_blocks)s, %(blocks_per_range)s)",
                {"open_blocks": OPEN_BLOCKS + BLOCKS_PER_RANGE, "blocks_per_range": BLOCKS_PER_RANGE},
            )
            (summarised,) = cursor.fetchone()
    except OperationalError as error:
        if getattr(error.__cause__, "sqlstate", "") != "55P03":  # lock_not_available
            raise
        return 0
    except ProgrammingError as error:
        if getattr(error.__cause__, "sqlstate", "") != "42501":  # insufficient_privilege
            raise
        log.warning("the log can't be made quick to search: run grant_role again, as the owner of the tables")
        return 0
    return int(summarised)
