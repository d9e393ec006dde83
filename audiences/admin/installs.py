"""Installs: connecting a Lytics account to an ODP account, and keeping it connected."""

from datetime import datetime
from typing import Any

from django.contrib import admin
from django.db.models import Case, F, QuerySet, Subquery, Value, When
from django.db.models.functions import Lower
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.timezone import now

from audiences.admin import (
    change_verbs,
    connecting,
    doctor,
    lane_counts,
    last_delivered,
    parked_groups,
    together,
    verbs,
)
from audiences.admin.connecting import SendTestCustomer
from audiences.admin.install_form import InstallForm
from audiences.admin.install_verbs import (
    RETRY_ALIKE,
    CheckKey,
    Delete,
    NewToken,
    RetryNow,
    TryFullBatches,
    deliver_now,
    saved,
)
from audiences.admin.lane_counts import LaneCounts
from audiences.admin.lytics_verbs import LYTICS_VERBS
from audiences.admin.odp_live import KeyCheck, check_key
from audiences.admin.pages import (
    CountedPaginator,
    OperatorAdmin,
    ago,
    count,
    last_call,
    link,
    list_url,
    number,
    pill,
    pill_and_why,
    up_to_bound,
)
from audiences.admin.retire_verbs import RetireAll
from audiences.admin.tokens import TokenAdmin
from audiences.annotations import optional, required
from audiences.delivery import account_switch, drafts
from audiences.insight import probes, state
from audiences.insight.probes import Proof
from audiences.models import Audience, Delivery, Install, Parked, Receipt, Token
from audiences.operations import installs, prefixes
from audiences.receiving import tokens
from audiences.wake import wake
from odp.regions import host_of

# A change of one of these fields resets the install's key check, and ends its backoff.
CONNECTION = {"odp_api_key", "odp_host", "region"}


def _counts(install: Install) -> LaneCounts:
    return required(install, "counts", LaneCounts)


def _parked(install: Install) -> str:
    return up_to_bound(optional(install, "parked_count", int) or 0)


# The buttons at the top of the page. The button for a test customer is beside the check list.
HEAD_VERBS = (RetryNow(), TryFullBatches(), CheckKey(), NewToken(), *change_verbs.VERBS, RetireAll(), Delete())


@admin.register(Install)
class InstallAdmin(OperatorAdmin[Install]):
    form = InstallForm
    verbs = (SendTestCustomer(), *HEAD_VERBS, *LYTICS_VERBS)
    empty_words = "No install yet. Add one to connect Lytics to ODP."
    list_display = (
        *("name_", "pill", "proven", "held", "audiences_", "waiting", "parked_", "last_call", "last_delivered", "host"),
    )
    paginator = CountedPaginator
    # The table has few rows, so that every column with a count can sort it.
    sortable_by = ("name_", "held", "audiences_", "waiting", "parked_", "last_call", "last_delivered")
    # Ignoring case: otherwise acme would come after Volkswagen.
    ordering = (Lower("name"), "id")
    search_fields = ("name",)
    search_help_text = "Part of a name"
    change_form_template = "audiences/install.html"
    compressed_fields = False
    fieldsets = (
        ("1. A name", {"fields": ("name",), "description": "A name for this connection."}),
        (
            "2. The ODP account",
            {
                "fields": ("region", "odp_api_key"),
                "description": "In ODP, under Settings > App Consent Settings, the Api app's Default Consent has to be"
                " Opted In; otherwise ODP accepts the data and doesn't show it. When you save, ODP is asked whether"
                " it accepts the key.",
            },
        ),
        (
            "3. Customer profile identifier",
            {
                "fields": ("identifier_field",),
                "description": "Keep _id and select Lytics ID under Export Fields of the Lytics job. For a field of"
                " your own, enter its name here and select that field under Export Fields; when it holds an array,"
                " select it under Fields to Trigger as well, and every value in it becomes a customer.",
            },
        ),
        (
            "4. Mechanism",
            {
                "fields": ("mechanism",),
                "description": "How audience membership is stored in ODP. The first fits most accounts. Id, name"
                " and description of the audiences are the same for all three.",
            },
        ),
        (
            "A change with consequences",
            {
                "fields": ("understood", "opened"),
                "description": "Only for changes that ask for it: another identifier field, or an ODP account that has"
                " an install already.",
            },
        ),
        (
            "More",
            {
                "fields": (
                    "enabled",
                    "odp_host",
                    "odp_prefix",
                    "allow_top_level_identifier",
                    "forget_missing_identifiers",
                    "batch_size",
                    "requests_per_second",
                    "max_in_flight",
                    "delay_limit_minutes",
                    "silence_limit_hours",
                    "parked_limit_per_hour",
                ),
                "classes": ("collapse",),
                "description": "The defaults fit most accounts.",
            },
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Install]:
        # One bounded statement. With a subquery, PostgreSQL may read every item of an install to count 10,000.
        parked = [When(pk=install, then=Value(rows)) for install, rows in parked_groups.by_install().items()]
        return (
            super()
            .get_queryset(request)
            .alias(**lane_counts.for_ordering())
            .annotate(
                parked_count=Case(*parked, default=Value(0)),
                called_at=Subquery(last_call()),
                delivered_at=last_delivered.of_install(),
            )
        )

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Return the list, with the counts and proofs of the installs on its page."""
        found = super().get_changelist_instance(request)
        counts, proofs = lane_counts.of_installs(found.result_list), probes.proofs(found.result_list)
        for install in found.result_list:
            install.counts, install.proof = counts[install.pk], proofs[install.pk]
        return found

    def get_fieldsets(self, request: HttpRequest, obj: Install | None = None) -> Any:
        """The numbered steps of the form. Without the permission to change installs, fields are text."""
        fieldsets: Any = super().get_fieldsets(request, obj)
        if obj:
            fieldsets = [(str(name).partition(". ")[2] or name, options) for name, options in fieldsets]
        if self.has_change_permission(request, obj) if obj else self.has_add_permission(request):
            return fieldsets
        return [
            (name, {**options, "fields": tuple(field for field in options["fields"] if field != "odp_api_key")})
            for name, options in fieldsets
        ]

    def get_urls(self) -> list[Any]:
        return [*connecting.urls(self), *doctor.urls(self), *together.urls(self, RETRY_ALIKE), *super().get_urls()]

    # --- saving ----------------------------------------------------------------------------------------------

    def save_model(self, request: HttpRequest, obj: Install, form: Any, change: bool) -> None:
        """Save only the fields that the form changed, because workers write the columns of the backoff."""
        if not change:
            token = installs.create(obj)
            request.session["revealed_token"] = token.pk
            verbs.record(request, [token], "Created with its install, and shown once.")
        elif form.changed_data:
            changed = list(form.changed_data)
            if "identifier_field" in changed:
                obj.identifier_since_at = now()
                changed.append("identifier_since_at")
            obj.save(update_fields=changed)
            account_switch.enter(form.before, obj)
            if "odp_prefix" in changed:
                prefixes.apply(obj, before=form.before.odp_prefix)
        if not change or CONNECTION.intersection(form.changed_data):
            drafts.forget(obj.pk)
            request.asks_odp = True  # type: ignore[attr-defined] # for the end of this request
        if change and "enabled" in form.changed_data and obj.enabled:
            wake(obj.pk)

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """With one button to save, which leads back to this page. ODP is asked after the transaction that saves."""
        one = {"show_save_and_add_another": False, "show_save_and_continue": False}
        response = super().changeform_view(request, object_id, form_url, {**one, **(extra_context or {})})
        install: Install | None = getattr(request, "saved", None)
        if install is None:
            return response
        after = "" if object_id else " Continue with the install instructions below."
        return saved(request, install, self._key_check(request, install), after=after)

    def _key_check(self, request: HttpRequest, install: Install) -> KeyCheck | None:
        """ODP's response to the key, if the form has changed the connection."""
        if not getattr(request, "asks_odp", False):
            return None
        found = check_key(install)
        install.refresh_from_db(fields=["key_accepted_at", "key_asked_at", "key_problem"])
        if found.works:
            deliver_now(install)
        return found

    def response_add(self, request: HttpRequest, obj: Install, post_url_continue: str | None = None) -> Any:
        """``changeform_view`` answers: it leads to the install's page, which has the next steps of connecting."""
        return self.response_change(request, obj)

    def response_change(self, request: HttpRequest, obj: Install) -> Any:
        request.saved = obj  # type: ignore[attr-defined] # for the end of this request
        return HttpResponse()

    def page_context(self, request: HttpRequest, install: Install) -> dict[str, Any]:
        revealed = request.session.pop("revealed_token", None)
        counts = lane_counts.of_installs([install])[install.pk]
        token_admin = self.admin_site.get_model_admin(Token)
        assert isinstance(token_admin, TokenAdmin)
        return {
            **connecting.look(self, request, install),
            "buttons": verbs.buttons(self, request, install, only=[verb.name for verb in HEAD_VERBS]),
            "lytics_buttons": verbs.buttons(self, request, install, only=[verb.name for verb in LYTICS_VERBS]),
            "guided": change_verbs.card(install),
            "state": state.of_install(install, waiting=counts.free),
            "missing": drafts.missing(install) if install.key_accepted_at is None else "",
            # Offered for drafts only: a working install has calls and can't be deleted.
            "undeletable": (
                drafts.undeletable(install)
                if install.key_accepted_at is None and request.user.has_perm(Delete.permission)
                else ""
            ),
            "webhook_url": installs.webhook_url(install),
            "revealed": revealed,
            "tokens": [
                {
                    "token": token,
                    "ending": tokens.ending(token),
                    "state": state.of_token(token),
                    "header": f"Authorization: {installs.authorization(token)}" if token.pk == revealed else "",
                    "buttons": verbs.buttons(token_admin, request, token),
                }
                for token in install.tokens.filter(revoked_at=None)
            ],
            "can_see_tokens": request.user.has_perm("audiences.view_token"),
            "links": [
                ("Audiences", number(counts.audiences), list_url(Audience, install__id__exact=install.pk)),
                ("Parked", _parked(install), list_url(Parked, install__id__exact=install.pk)),
                ("Calls", "", list_url(Receipt, install__id__exact=install.pk)),
                ("Deliveries", "", list_url(Delivery, install__id__exact=install.pk)),
                *doctor.links(request, install),
            ],
            "smaller": count(install.learned_batch_size, "item") if install.learned_batch_size else "",
            "backlog": number(counts.backlog),
        }

    # --- how it is written -----------------------------------------------------------------------------------

    @admin.display(description="held audiences", ordering=F("blocked").asc(nulls_first=True))
    def held(self, install: Install) -> SafeString | str:
        """The numbers of blocked, held and paused audiences, each with a link to the list of these."""
        counts = _counts(install)
        held = (
            ("blocked", counts.blocked, "blocked"),
            ("on hold", counts.on_hold, "hold"),
            ("paused", counts.paused, "paused"),
        )
        links = [
            (list_url(Audience, state=value, install__id__exact=install.pk), f"{many:,} {words}")
            for words, many, value in held
            if many
        ]
        if not links:
            return "none"
        return format_html("<span>{}</span>", format_html_join(", ", '<a class="ls-link" href="{}">{}</a>', links))

    @admin.display(description="install", ordering=Lower("name"))
    def name_(self, install: Install) -> SafeString | str:
        return link(install)

    @admin.display(description="state")
    def pill(self, install: Install) -> SafeString:
        return pill_and_why(state.of_install(install, waiting=_counts(install).free))

    @admin.display(description="shown in ODP")
    def proven(self, install: Install) -> SafeString | str:
        """The result of the last test customer, and the age of the last proof."""
        proof = required(install, "proof", Proof)
        if proof.word == "none":
            return "—"
        return format_html(
            '{} <span class="ls-note">{}</span>', pill(proof.state), ago(proof.at) if proof.at else "never"
        )

    @admin.display(description="last delivered", ordering=F("delivered_at").asc(nulls_first=True))
    def last_delivered(self, install: Install) -> SafeString | str:
        return ago(optional(install, "delivered_at", datetime))

    @admin.display(description="audiences", ordering=F("audience_count").asc(nulls_first=True))
    def audiences_(self, install: Install) -> str:
        return number(_counts(install).audiences)

    @admin.display(description="backlog", ordering=F("backlog").asc(nulls_first=True))
    def waiting(self, install: Install) -> str:
        return number(_counts(install).backlog)

    @admin.display(description="parked", ordering=F("parked_count").asc(nulls_first=True))
    def parked_(self, install: Install) -> str:
        return _parked(install)

    @admin.display(description="last call", ordering=F("called_at").asc(nulls_first=True))
    def last_call(self, install: Install) -> Any:
        return ago(optional(install, "called_at", datetime))

    @admin.display(description="ODP host")
    def host(self, install: Install) -> str:
        return host_of(api_key=install.odp_api_key, region=install.region, host=install.odp_host)
