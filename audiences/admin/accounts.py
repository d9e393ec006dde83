"""Forms of users and roles in plain words, and the button that ends a login lock."""

from typing import TYPE_CHECKING, Any

from axes.models import AccessAttempt
from axes.utils import reset
from django import forms
from django.conf import settings
from django.contrib import admin
from django.contrib.auth.models import Group, Permission, User
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet, Sum
from django.http import HttpRequest, HttpResponse
from django.utils.timezone import now
from unfold.forms import UserCreationForm
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget, UnfoldAdminSelectWidget

from audiences.admin import verbs
from audiences.admin.opened import AsOpened, one_line
from audiences.admin.verbs import Verb

if TYPE_CHECKING:
    _Choices = forms.ModelMultipleChoiceField[Permission]
else:
    _Choices = forms.ModelMultipleChoiceField

# Value of the role select for a user who has several roles.
SEVERAL = "several"
# Permissions on Django's own tables that a role can have, and this app's permissions to add, change or delete rows.
_GIVEN = Q(content_type__app_label="auth", codename__in=["view_user", "add_user", "change_user", "view_group"]) | Q(
    content_type__app_label="admin", codename="view_logentry"
)
_CHANGED_HERE = ["add_install", "change_install", "delete_install", "add_token"]
_VERBS = {"view": "See", "add": "Add", "change": "Change", "delete": "Delete"}
_NAMES = {"log entries": "who did what", "groups": "roles", "parked": "parked items"}


class RoleChoice(forms.ChoiceField):
    """One role, or none."""

    def __init__(self) -> None:
        super().__init__(
            label="Role",
            required=False,
            widget=UnfoldAdminSelectWidget,
            help_text="A viewer looks and finds customers. An operator also connects, pauses, unblocks and releases. An"
            " admin also discards, sees unmasked items and manages users.",
        )


def _choose(form: Any, user: User) -> None:
    """Fill the select of roles, with the present one chosen."""
    names = list(Group.objects.order_by("name").values_list("name", flat=True))
    held = sorted(user.groups.values_list("name", flat=True)) if user.pk else []
    none = "No role needed: may do everything" if user.is_superuser else "No role"
    choices = [("", none), *((name, name.capitalize()) for name in names)]
    if len(held) > 1:
        choices.append((SEVERAL, f"Several: {', '.join(held)}"))
    form.fields["role"].choices = choices
    form.initial["role"] = SEVERAL if len(held) > 1 else held[0] if held else ""


def give_role(user: User, role: str) -> None:
    """Replace the roles of ``user`` by ``role``. With ``SEVERAL``, the user keeps the roles they have."""
    if role != SEVERAL:
        user.groups.set(Group.objects.filter(name=role))


class UserForm(AsOpened):
    role = RoleChoice()

    class Meta:
        model = User
        fields = ("username", "first_name", "last_name", "email", "is_active", "is_staff")
        labels = {"is_active": "Can log in", "is_staff": "Can open these pages"}
        help_texts = {
            "username": "What they type to log in.",
            "is_active": "Switch this off when somebody leaves. Accounts are never deleted, so that “Who did what”"
            " keeps its names.",
            "is_staff": "Without it an account can't use these pages at all.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _choose(self, self.instance)

    def facts(self) -> Any:
        values = [getattr(self.instance, name) for name in UserForm.Meta.fields]
        return [*values, sorted(self.instance.groups.values_list("pk", flat=True))]


class NewUserForm(UserCreationForm):  # type: ignore[misc] # unfold has no types
    role = RoleChoice()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _choose(self, User())


# --- roles ---------------------------------------------------------------------------------------------------


def sentence(permission: Permission) -> str:
    """What the permission allows, as a phrase for people."""
    table = permission.content_type.model_class()
    verb, _, model = permission.codename.partition("_")
    if verb in _VERBS and permission.content_type.model == model:
        plural = str(table._meta.verbose_name_plural) if table else f"{permission.content_type.name}s"
        return f"{_VERBS[verb]} {_NAMES.get(plural, plural)}"
    # The stored name is the one of the version that made the permission; Django never renames them.
    names = dict(table._meta.permissions) if table else {}
    words = str(names.get(permission.codename, permission.name)).removeprefix("Can ")
    return words[:1].upper() + words[1:]


def grantable() -> QuerySet[Permission]:
    """Permissions that some page here asks for."""
    pages = [model._meta.model_name for model in admin.site._registry if model._meta.app_label == "audiences"]
    looks = Q(content_type__app_label="audiences", codename__in=[f"view_{name}" for name in pages])
    of_buttons = Q(content_type__app_label="audiences")
    for verb in _VERBS:
        of_buttons &= ~Q(codename__startswith=f"{verb}_")
    changes = Q(content_type__app_label="audiences", codename__in=_CHANGED_HERE)
    wanted = Permission.objects.filter(looks | of_buttons | changes | _GIVEN)
    return wanted.select_related("content_type").order_by("content_type__app_label", "content_type__model", "codename")


class Rights(_Choices):
    def label_from_instance(self, obj: Permission) -> str:
        return sentence(obj)


class RoleForm(AsOpened):
    class Meta:
        model = Group
        fields = ("name", "permissions")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["permissions"] = Rights(
            queryset=grantable(),
            label="May",
            required=False,
            widget=UnfoldAdminCheckboxSelectMultipleWidget,
        )

    def facts(self) -> Any:
        return self.instance.name, sorted(self.instance.permissions.values_list("pk", flat=True))

    def clean_name(self) -> str:
        return one_line(self.cleaned_data["name"])

    def clean_permissions(self) -> list[Permission]:
        """Keep the permissions that the form doesn't show."""
        chosen = list(self.cleaned_data["permissions"])
        if self.instance.pk:
            chosen += self.instance.permissions.exclude(pk__in=grantable().values("pk"))
        return chosen


# --- locked logins -------------------------------------------------------------------------------------------


def locked_from(user: User) -> list[str]:
    """The addresses from which this account can't log in now, after too many wrong passwords."""
    recent = AccessAttempt.objects.filter(username=user.username, attempt_time__gte=now() - settings.AXES_COOLOFF_TIME)
    counted = recent.values("ip_address").annotate(total=Sum("failures_since_start"))
    over = counted.filter(total__gte=settings.AXES_FAILURE_LIMIT).order_by("ip_address")
    return [str(row["ip_address"] or "an unknown address") for row in over]


class Unlock(Verb[User]):
    name, label, icon, permission = "unlock", "Unlock login", "lock_open", "auth.change_user"

    def offered(self, user: User) -> bool:
        return bool(locked_from(user))

    def consequence(self, user: User) -> str:
        return (
            f"{user.username} is locked after too many wrong passwords from {', '.join(locked_from(user))}. The"
            " lock ends automatically after 15 minutes; this ends it now. The password stays as it is."
        )

    def do(self, user: User, *, by: str, answers: dict[str, Any]) -> str | None:
        return f"Unlocked the login of {user.username}." if reset(username=user.username) else None

    def pressed(self, admin: Any, request: HttpRequest, pk: int) -> HttpResponse:
        user, _ = verbs.approach(admin, self, request, pk)
        if not admin.has_change_permission(request, user):
            raise PermissionDenied
        return verbs.press(admin, self, request, pk)
