"""Who may do what, and who did what."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, User
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from audiences.admin import verbs
from audiences.admin.accounts import NewUserForm, RoleForm, Unlock, UserForm, give_role, grantable, sentence
from audiences.admin.log_filters import Action, Thing, seen_this_month
from audiences.admin.pages import HistoryAdmin, SafeList, WithButtons, WithHistory, ago
from audiences.admin.periods import ByPeriod

if TYPE_CHECKING:
    from django.contrib.auth.admin import GroupAdmin as UnfoldGroupAdmin
    from django.contrib.auth.admin import UserAdmin

    UnfoldUserAdmin = UserAdmin[User]
else:
    from django.contrib.auth.admin import GroupAdmin, UserAdmin
    from unfold.admin import ModelAdmin
    from unfold.forms import AdminPasswordChangeForm

    class UnfoldUserAdmin(UserAdmin, ModelAdmin):
        form = UserForm
        add_form = NewUserForm
        change_password_form = AdminPasswordChangeForm

    class UnfoldGroupAdmin(GroupAdmin, ModelAdmin):
        pass


admin.site.unregister(User)
admin.site.unregister(Group)


@admin.register(User)
class PeopleAdmin(WithButtons[User], WithHistory[User], SafeList[User], UnfoldUserAdmin):
    list_display = ("username", "roles", "is_active", "last_login")
    list_filter = ("is_active",)
    fieldsets = (
        (None, {"fields": ("username", "password_")}),
        ("Person", {"fields": ("first_name", "last_name", "email")}),
        ("Access", {"fields": ("role", "is_active", "is_staff", "opened")}),
    )
    readonly_fields = ("password_",)
    add_fieldsets = ((None, {"fields": ("username", "role", "password1", "password2")}),)
    filter_horizontal = ()
    change_form_template = "audiences/thing.html"
    verbs = (Unlock(),)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        return super().changelist_view(request, {"title": "Users", **(extra_context or {})})

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).prefetch_related("groups")

    def get_urls(self) -> list[Any]:
        return [*verbs.urls(cast(Any, self)), *super().get_urls()]

    def get_fieldsets(self, request: HttpRequest, obj: User | None = None) -> Any:
        """For a person who may only view accounts the roles are text, because a select is part of the form."""
        if obj is None or self.has_change_permission(request, obj):
            return super().get_fieldsets(request, obj)
        return [
            (name, {**options, "fields": tuple(_as_text(options["fields"]))}) for name, options in self.fieldsets or ()
        ]

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> Any:
        return (*self.readonly_fields, "roles")

    def may_press(self, request: HttpRequest, thing: User) -> bool:
        return self.has_change_permission(request, thing)

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        if obj is not None and obj.is_superuser and not request.user.is_superuser:
            return False
        return super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        """Accounts are switched off instead of deleted, so that the history keeps their names."""
        return False

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        if not change:
            # Without it an account of these pages could not log in to them.
            obj.is_staff = True
        super().save_model(request, obj, form, change)
        if "role" in form.cleaned_data:
            give_role(obj, form.cleaned_data["role"])

    @admin.display(description="password")
    def password_(self, user: User) -> SafeString | str:
        text = "Stored, and shown to nobody." if user.has_usable_password() else "None, so nobody can log in with one."
        return format_html('{} <a class="ls-link" href="../password/">Set another one</a>', text)

    @admin.display
    def roles(self, user: User) -> str:
        return "everything" if user.is_superuser else ", ".join(group.name for group in user.groups.all()) or "none"


def _as_text(fields: Iterable[Any]) -> list[Any]:
    return ["roles" if field == "role" else field for field in fields if field != "opened"]


@admin.register(Group)
class RoleAdmin(WithHistory[Group], SafeList[Group], UnfoldGroupAdmin):
    form = RoleForm
    filter_horizontal = ()
    readonly_fields = ("may",)

    def get_fields(self, request: HttpRequest, obj: Group | None = None) -> Any:
        changes = self.has_change_permission(request, obj) if obj else self.has_add_permission(request)
        return ("name", "permissions", "opened") if changes else ("name", "may")

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest | None = None, **kwargs: Any) -> Any:
        """The form has its own field for permissions, with plain names."""
        return None

    @admin.display
    def may(self, group: Group) -> SafeString:
        held = grantable().filter(group=group)
        return format_html_join("", "<div>{}</div>", ((sentence(permission),) for permission in held))

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        return super().changelist_view(request, {"title": "Roles", **(extra_context or {})})

    def has_delete_permission(self, request: HttpRequest, obj: Group | None = None) -> bool:
        return False


@admin.register(LogEntry)
class LogEntryAdmin(HistoryAdmin[LogEntry]):
    title = "Who did what"
    list_display = ("when", "user", "thing", "what")
    sortable_by = ("when",)
    list_filter = (ByPeriod, "user", Action, Thing)
    time_field = "action_time"
    search_fields = ("object_repr", "change_message", "user__username")
    search_help_text = "Part of a thing's name, of what was done or of a user's name"
    list_before_template = "audiences/log_links.html"
    csv_columns = (
        ("when", "action_time"),
        ("user", "user__username"),
        ("kind", "content_type__model"),
        ("thing", "object_repr"),
        ("id", "object_id"),
        ("what", "pk"),
    )
    list_select_related = ("user", "content_type")
    list_display_links = None
    fields = ("action_time", "user", "thing", "what")
    readonly_fields = ("thing", "what")

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        return super().changelist_view(request, {"seen_this_month": seen_this_month(), **(extra_context or {})})

    def csv_piece(self, rows: list[list[Any]]) -> None:
        entries = LogEntry.objects.in_bulk([row[-1] for row in rows])
        for row in rows:
            row[-1] = self.what(entries[row[-1]])

    @admin.display(ordering="id")
    def when(self, entry: LogEntry) -> SafeString | str:
        return ago(entry.action_time)

    @admin.display
    def thing(self, entry: LogEntry) -> str:
        return f"{entry.content_type.name if entry.content_type else ''} {entry.object_repr}"

    @admin.display
    def what(self, entry: LogEntry) -> str:
        return entry.get_change_message() or entry.get_action_flag_display()
