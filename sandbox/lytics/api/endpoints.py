"""The endpoints of Lytics' API: documented paths and envelopes, and switches for the rest."""

import base64
import json
import re
import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from sandbox.lytics.account import Account, Row
from sandbox.lytics.api.switches import Switches
from sandbox.odp.wire.answers import Answer, Refused, in_json

LARGEST_PAGE, USUAL_PAGE = 100, 10
HOUR = 3_600
STATES = {"pause": "paused", "resume": "running", "bounce": "running", "kill": "deleted"}


class Api:
    """One account and its token. ``clock_ahead`` moves the clock of tokens and quotas."""

    def __init__(self, account: Account, *, token: str, switches: Switches) -> None:
        self.account = account
        self.token = token
        self.switches = switches
        self.clock_ahead = 0.0
        self._lock = threading.Lock()
        self._second, self._requests = 0, 0

    def now(self) -> float:
        return time.time() + self.clock_ahead

    def answer(self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes) -> Answer:
        try:
            self._admit(headers.get("authorization", ""))
            for verb, pattern, handle in ROUTES:
                if verb == method and (found := re.fullmatch(pattern, path)):
                    return handle(self, query, body, *map(unquote, found.groups()))
            raise Refused(self.error(404, path, f"no such endpoint: {method} {path}"))
        except Refused as refused:
            return refused.answer

    def _admit(self, authorization: str) -> None:
        if authorization != self.token:
            # Documented: a 401 has the style of `/api` on every path.
            raise Refused(in_json(401, {"message": "Not authorized", "status": 401}))
        with self._lock:
            second = int(self.now())
            self._requests = self._requests + 1 if second == self._second else 1
            self._second = second
            if 0 < self.switches.requests_per_second < self._requests:
                raise Refused(in_json(429, {"message": "Too many requests", "status": 429}))

    def error(self, status: int, path: str, message: str) -> Answer:
        style = self.switches.error_style
        if style == "v2" or (style == "documented" and path.startswith("/v2/")):
            error = {"code": f"SANDBOX-{status}", "message": message, "level": "warn"}
            return in_json(status, {"status": status, "errors": [error], "request_id": secrets.token_hex(8)})
        return in_json(status, {"data": None, "status": status, "message": message})


def v2(data: Any, status: int = 200) -> Answer:
    return in_json(status, {"data": data, "status": status, "request_id": secrets.token_hex(8)})


def v1(data: Any, **more: Any) -> Answer:
    return in_json(200, {"data": data, "status": 200, "message": "success", **more})


# Audiences


def _segment(row: Row, *, sizes: bool) -> dict[str, Any]:
    segment_id, slug, size = row
    shown = {"id": segment_id, "slug_name": slug, "name": slug.replace("_", " ").title(), "table": "user"}
    shown |= {"kind": "segment", "is_public": True, "invalid": False, "segment_ql": f"FILTER * FROM user ALIAS {slug}"}
    return {**shown, "size": size} if sizes else shown


def list_segments(api: Api, query: dict[str, str], body: bytes) -> Answer:
    return v2([_segment(row, sizes=query.get("sizes") == "true") for row in api.account.audiences()])


def _known(api: Api, path: str, name: str) -> Row:
    row = api.account.audience(name)
    if row is None:
        raise Refused(api.error(404, path, "segment not found"))
    return row


def show_segment(api: Api, query: dict[str, str], body: bytes, name: str) -> Answer:
    return v2(_segment(_known(api, "/v2/", name), sizes=query.get("sizes") == "true"))


def show_size(api: Api, query: dict[str, str], body: bytes, name: str) -> Answer:
    segment_id, slug, size = _known(api, "/api/", name)
    return v1({"id": segment_id, "name": slug, "slug_name": slug, "size": size})


def scan(api: Api, query: dict[str, str], body: bytes, name: str) -> Answer:
    segment_id, _, size = _known(api, "/api/", name)
    after = ""
    if token := query.get("start"):
        after = _place(token, segment_id, api.now() - api.switches.scan_token_seconds)
        if not after:
            if api.switches.old_scan == "end":
                return v1([], total=size, _next="")
            raise Refused(api.error(int(api.switches.old_scan), "/api/", "the scan has expired"))
    text = query.get("limit", str(USUAL_PAGE))
    limit = min(int(text), LARGEST_PAGE) if text.isdecimal() and int(text) else USUAL_PAGE
    page = api.account.members(segment_id, after=after, limit=limit)
    wanted = set(query["fields"].split(",")) if query.get("fields") else None
    data = [{name: one for name, one in person.items() if wanted is None or name in wanted} for _, person in page]
    more = _token(segment_id, page[-1][0], api.now()) if len(page) == limit else ""
    return v1(data, total=size, _next=more)


def _token(segment_id: str, after: str, now: float) -> str:
    return base64.urlsafe_b64encode(json.dumps([segment_id, after, now]).encode()).decode()


def _place(token: str, segment_id: str, oldest: float) -> str:
    """The last person of the page before; empty when the token is of another audience, too old, or no token."""
    try:
        place = json.loads(base64.urlsafe_b64decode(token))
    except (ValueError, RecursionError):
        return ""
    match place:
        case [str(of), str(after), float(made_at)] if of == segment_id and made_at >= oldest:
            return after
    return ""


# People


def show_entity(api: Api, query: dict[str, str], body: bytes, name: str, value: str) -> Answer:
    found = api.account.person(name, value)
    if found is None:
        if api.switches.missing_person == "404":
            raise Refused(api.error(404, "/api/", "Not Found"))
        return in_json(200, {"data": {"segments": ["not_found", "all"]}, "status": 200, "message": "Not Found"})
    inside = api.account.audiences_of(found[0])
    person = {**found[1], "segments": ["all", *(slug for _, slug in inside)]}
    if query.get("allsegments") == "true":
        person["segments_all"] = [segment_id for segment_id, _ in inside]
    return v1(person)


def show_identity(api: Api, query: dict[str, str], body: bytes, name: str, value: str) -> Answer:
    if (found := api.account.person(name, value)) is None:
        raise Refused(api.error(404, "/v2/", "identity not found"))
    return v2(found[1])


# Jobs and authorizations


def _json_object(api: Api, body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise Refused(api.error(400, "/v2/", "the body must be a JSON object"))
    return given


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _job(api: Api, name: str) -> dict[str, Any]:
    job = api.account.thing("job", name)
    if job is None:
        raise Refused(api.error(404, "/v2/", "job not found"))
    return job


def _save(api: Api, kind: str, thing: dict[str, Any]) -> None:
    thing["updated"] = datetime.fromtimestamp(api.now(), UTC).isoformat()
    api.account.put(kind, thing, made_at=api.now())


def _within_the_hour(api: Api) -> None:
    if api.account.made_since(api.now() - HOUR) >= api.switches.integrations_per_hour:
        raise Refused(api.error(429, "/v2/", "too many integrations were created in this hour"))


def _note(api: Api, job_id: str, message: str) -> None:
    stamp = datetime.fromtimestamp(api.now(), UTC).isoformat()
    api.account.log(
        job_id, {"job_id": job_id, "message": message, "level": "info", "timestamp": stamp, "context": {}, "code": ""}
    )


def list_jobs(api: Api, query: dict[str, str], body: bytes) -> Answer:
    jobs = api.account.things("job")
    if workflow := query.get("workflow"):
        jobs = [job for job in jobs if job["workflow"] == workflow]
    if query.get("show_all") != "true":
        jobs = [job for job in jobs if job["status"] not in ("deleted", "completed")]
    return v2(jobs)


def show_job(api: Api, query: dict[str, str], body: bytes, name: str) -> Answer:
    return v2(_job(api, name))


def show_logs(api: Api, query: dict[str, str], body: bytes, name: str) -> Answer:
    return v2(api.account.logs(_job(api, name)["id"]))


def create_job(api: Api, query: dict[str, str], body: bytes, workflow: str | None = None) -> Answer:
    given = _json_object(api, body)
    job = {"description": "", "hidden": False, **given, "workflow": workflow or given.get("workflow", "")}
    config = job.get("config")
    if not isinstance(config, dict) or not job.get("name") or job["workflow"] != "webhook_triggers":
        raise Refused(api.error(400, "/v2/", "name, workflow and config are needed"))
    if not str(config.get("webhook_url", "")).startswith(("https://", "http://127.0.0.1")):
        raise Refused(api.error(400, "/v2/", "webhook_url must be https"))
    if not all(api.account.audience(str(one)) for one in _listed(config.get("segment_ids")) or [""]):
        raise Refused(api.error(400, "/v2/", "segment_ids names no audience, or one that does not exist"))
    if not all(api.account.thing("auth", str(one)) for one in _listed(job.get("auth_ids")) or [""]):
        raise Refused(api.error(400, "/v2/", "auth_ids names no authorization that exists"))
    _within_the_hour(api)
    active = [one for one in api.account.things("job") if one["status"] in ("running", "sleeping")]
    if len(active) >= api.switches.active_exports:
        raise Refused(api.error(400, "/v2/", "the account has too many active exports"))
    job |= {"id": secrets.token_hex(16), "status": "paused" if query.get("run_job") == "false" else "running"}
    job["created"] = datetime.fromtimestamp(api.now(), UTC).isoformat()
    _save(api, "job", job)
    _note(api, job["id"], "Job created")
    return v2(job, 201)


def replace_job(api: Api, query: dict[str, str], body: bytes, workflow: str, name: str) -> Answer:
    known, given = _job(api, name), _json_object(api, body)
    if known["workflow"] != workflow:
        raise Refused(api.error(404, "/v2/", "job not found"))
    # Documented: no merge. What isn't sent is reset; what only Lytics may set stays.
    job = {"description": "", "hidden": False, "config": {}, "auth_ids": known["auth_ids"], **given}
    job |= {own: known[own] for own in ("id", "status", "created", "workflow")}
    _save(api, "job", job)
    _note(api, job["id"], "Job updated")
    return v2(job)


def change_state(api: Api, query: dict[str, str], body: bytes, name: str, verb: str) -> Answer:
    job = _job(api, name)
    if job["status"] == "deleted":
        raise Refused(api.error(400, "/v2/", "the job is deleted"))
    job["status"] = STATES[verb]
    _save(api, "job", job)
    _note(api, job["id"], f"Job: {verb}")
    return v2(job) if api.switches.lifecycle_answer == "job" else Answer(200)


def _shown(api: Api, auth: dict[str, Any]) -> dict[str, Any]:
    hidden = api.switches.auth_secrets == "hidden"
    return {name: value for name, value in auth.items() if not (hidden and name == "webhook_request_headers")}


def list_auths(api: Api, query: dict[str, str], body: bytes) -> Answer:
    return v2([_shown(api, auth) for auth in api.account.things("auth")])


def create_auth(api: Api, query: dict[str, str], body: bytes, kind: str) -> Answer:
    given = _json_object(api, body)
    # The documentation doesn't show the body around the fields, so both ways are taken.
    given |= given.pop("config", {}) if isinstance(given.get("config", {}), dict) else {}
    if kind != "header_param_auth" or not given.get("webhook_request_headers"):
        raise Refused(api.error(400, "/v2/", "only header_param_auth with webhook_request_headers is modelled"))
    _within_the_hour(api)
    auth = {**given, "id": secrets.token_hex(16), "type": kind}
    _save(api, "auth", auth)
    return v2(_shown(api, auth), 201)


ONE = "([^/]+)"
Handler = Callable[..., Answer]
ROUTES: list[tuple[str, str, Handler]] = [
    ("GET", "/v2/segment", list_segments),
    ("GET", f"/v2/segment/{ONE}", show_segment),
    ("GET", f"/api/segment/{ONE}/size", show_size),
    ("GET", f"/api/segment/{ONE}/scan", scan),
    ("GET", f"/api/entity/user/{ONE}/{ONE}", show_entity),
    ("GET", f"/v2/identity/user/{ONE}/{ONE}", show_identity),
    ("GET", "/v2/job", list_jobs),
    ("GET", f"/v2/job/(?:webhook_triggers/)?{ONE}/logs", show_logs),
    ("GET", f"/v2/job/(?:webhook_triggers/)?{ONE}", show_job),
    ("POST", "/v2/job", create_job),
    ("POST", f"/v2/job/{ONE}", create_job),
    ("PUT", f"/v2/job/{ONE}/{ONE}", replace_job),
    ("POST", f"/v2/job/{ONE}/(pause|resume|bounce|kill)", change_state),
    ("GET", "/v2/auth", list_auths),
    ("POST", f"/v2/auth/{ONE}", create_auth),
]
