"""People with roles at the admin's pages."""

from django.contrib.auth.models import Group, User
from django.test import Client


def someone(role: str, name: str = "") -> Client:
    """A person with that role, or with none, logged in."""
    person = User.objects.create_user(name or role, password="long enough for anyone", is_staff=True)
    if role:
        person.groups.add(Group.objects.get(name=role))
    client = Client()
    client.force_login(person)
    return client
