from django.db import migrations

# Each Run and each Delivery is stored when its request is opened and updated once when it is closed. The update changes
# columns of indexes, so it leaves a dead row behind. By default PostgreSQL vacuums a table when a fifth of its rows are
# dead, and these tables grow with every request: a vacuum comes ever later and has ever more to do. In two hours at
# 2,000 events/s the dead rows rose by 500,000. After a fixed number, a vacuum reads the pages that changed since the one
# before, and the indexes only once a fiftieth of the pages have dead rows.
VACUUM = "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000"
OPTIONS = "autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold"
TABLES = ("audiences_run", "audiences_delivery")


class Migration(migrations.Migration):

    dependencies = [
        ('audiences', '0062_parts_of_the_log'),
    ]

    operations = [
        migrations.RunSQL(
            f"ALTER TABLE {table} SET ({VACUUM})",
            reverse_sql=f"ALTER TABLE {table} RESET ({OPTIONS})",
        )
        for table in TABLES
    ]
