"""Three roles as groups: who looks, who keeps it going, who also owns it."""

from django.db import migrations

VIEWER = [
    *("view_install", "view_token", "view_audience", "view_lane", "view_run", "view_delivery"),
    *("view_receipt", "view_parked", "find_customer"),
]
OPERATOR = [
    *VIEWER,
    *("add_install", "change_install", "retry_install", "test_install"),
    *("add_token", "rotate_token", "revoke_token", "reveal_token"),
    *("pause_audience", "resume_audience", "unblock_audience", "resync_audience", "replay_audience"),
    "release_parked",
]
ADMIN = [*OPERATOR, "discard_parked", "reveal_parked"]
PEOPLE = ["view_user", "add_user", "change_user", "view_group", "view_logentry"]


def make_roles(apps, schema_editor):
    Permission = apps.get_model("auth", "Permission")
    Group = apps.get_model("auth", "Group")
    make_permissions(apps)
    for name, wanted in (("viewer", VIEWER), ("operator", OPERATOR), ("admin", ADMIN)):
        group, _ = Group.objects.get_or_create(name=name)
        permissions = Permission.objects.filter(content_type__app_label="audiences", codename__in=wanted)
        group.permissions.add(*permissions)
        if name == "admin":
            group.permissions.add(*Permission.objects.filter(codename__in=PEOPLE))


def make_permissions(apps):
    """Django makes them after the last migration, which is too late for a group to hold them."""
    from django.apps import apps as installed
    from django.contrib.auth.management import create_permissions

    for label in ("audiences", "auth", "admin"):
        create_permissions(installed.get_app_config(label), verbosity=0, apps=apps)


def remove_roles(apps, schema_editor):
    apps.get_model("auth", "Group").objects.filter(name__in=["viewer", "operator", "admin"]).delete()


class Migration(migrations.Migration):
    dependencies = [
        ("audiences", "0002_a_permission_per_verb"),
        ("auth", "0012_alter_user_first_name_max_length"),
        ("admin", "0003_logentry_add_action_flag_choices"),
        ("contenttypes", "0002_remove_content_type_name"),
    ]
    operations = [migrations.RunPython(make_roles, remove_roles)]
