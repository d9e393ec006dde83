"""Who may do what, and who did what."""

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, User
from django.http import HttpRequest
from django.utils.safestring import SafeString

from audiences.admin.pages import HistoryAdmin, SafeList, ago

if TYPE_CHECKING:
    from django.contrib.auth.admin import GroupAdmin as UnfoldGroupAdmin
    from django.contrib.auth.admin import UserAdmin

    UnfoldUserAdmin = UserAdmin[User]
else:
    from django.contrib.auth.admin import GroupAdmin, UserAdmin
    from unfold.admin import ModelAdmin
    from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

    class UnfoldUserAdmin(UserAdmin, ModelAdmin):
        form = UserChangeForm
        add_form = UserCreationForm
        change_password_form = AdminPasswordChangeForm

    class UnfoldGroupAdmin(GroupAdmin, ModelAdmin):
        pass


admin.site.unregister(User)
admin.site.unregister(Group)


@admin.register(User)
class PeopleAdmin(SafeList, UnfoldUserAdmin):
    list_display = ("username", "roles", "is_active", "last_login")
    list_filter = ("is_active",)
    fieldsets = (
        (None, {"fields": ("username", "password")}),
        ("Person", {"fields": ("first_name", "last_name", "email")}),
        ("Access", {"fields": ("is_active", "is_staff", "groups")}),
    )
    add_fieldsets = ((None, {"fields": ("username", "password1", "password2")}),)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        return super().changelist_view(request, {"title": "Users", **(extra_context or {})})

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).prefetch_related("groups")

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        if obj is not None and obj.is_superuser and not request.user.is_superuser:
            return False
        return super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        """An account is switched off; what it did keeps its name."""
        return False

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        if not change:
            # Without it an account of these pages could not log in to them.
            obj.is_staff = True
        super().save_model(request, obj, form, change)

    @admin.display
    def roles(self, user: User) -> str:
        return "everything" if user.is_superuser else ", ".join(group.name for group in user.groups.all()) or "none"


@admin.register(Group)
class RoleAdmin(SafeList, UnfoldGroupAdmin):
    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        return super().changelist_view(request, {"title": "Roles", **(extra_context or {})})

    def has_delete_permission(self, request: HttpRequest, obj: Group | None = None) -> bool:
        return False


@admin.register(LogEntry)
class LogEntryAdmin(HistoryAdmin[LogEntry]):
    title = "Who did what"
    list_display = ("when", "user", "thing", "what")
    list_filter = ("user",)
    list_select_related = ("user", "content_type")
    list_display_links = None
    fields = ("action_time", "user", "thing", "what")
    readonly_fields = ("thing", "what")

    @admin.display
    def when(self, entry: LogEntry) -> SafeString | str:
        return ago(entry.action_time)

    @admin.display
    def thing(self, entry: LogEntry) -> str:
        return f"{entry.content_type.name if entry.content_type else ''} {entry.object_repr}"

    @admin.display
    def what(self, entry: LogEntry) -> str:
        return entry.get_change_message() or entry.get_action_flag_display()
