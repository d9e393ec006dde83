from django.db import migrations

# Each call updates its audiences, each claim and settle its lanes, each request its place in the rate limit. A row has
# many dead versions while transactions overlap. With pages filled to 10 %, the next version fits on the page of the one
# before it: the update is HOT, which writes no index entry, and any reader of the page may prune the dead versions.
# Full pages scatter the versions over new pages with index entries for each, and every look-up reads through them: with
# 200 audiences a call, 25,000 events/s were stored instead of 75,000. Rows that are there move to emptier pages with
# their next updates, so nothing is rewritten.
#
# Vacuum after 1,000 dead versions and without pauses, because these tables have few pages. The default threshold, 20 %
# of the rows, is passed in a second, and its pauses make a vacuum of a busy table last longer than it takes to fill up.
#
# The log, the calls, Deliveries and Runs keep the default settings: their rows are inserted, and updated at most once.
ROOM = "fillfactor = 10"
VACUUM = "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0"
TABLES = ("audiences_audience", "audiences_lane", "audiences_pace", "audiences_install")
OPTIONS = "fillfactor, autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold, autovacuum_vacuum_cost_delay"


class Migration(migrations.Migration):

    dependencies = [
        ('audiences', '0027_drop_confirmation'),
    ]

    operations = [
        migrations.RunSQL(
            f"ALTER TABLE {table} SET ({ROOM}, {VACUUM})",
            reverse_sql=f"ALTER TABLE {table} RESET ({OPTIONS})",
        )
        for table in TABLES
    ]
