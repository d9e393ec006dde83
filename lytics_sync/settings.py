"""Settings: everything that differs between two deployments comes from the environment (see .env.example).

The first sentence of the comment above each ``env.…`` call is its description in docs/settings.md; `make settings`
writes that page.
"""

import ssl
from datetime import timedelta
from urllib.parse import urljoin

from django.urls import reverse_lazy

from lytics.identifiers import placeholder
from lytics_sync import admin_theme, database_url, env, logs, redis_url
from lytics_sync.env import host_of
from outgoing.retry_after import LONGEST_RETRY_AFTER

env.refuse_former_names()

VERSION = "0.1.0"
BASE_DIR = env.PROJECT_DIR
DATA_DIR = env.data_dir()

# Whether error pages show tracebacks and settings to the browser; never on a host that others reach.
DEBUG = env.flag("DEBUG", False)
# The key that signs sessions.
SECRET_KEY = env.text("SECRET_KEY")
# Former values of SECRET_KEY, so that sessions signed with them stay valid.
SECRET_KEY_FALLBACKS = env.words("SECRET_KEY_FALLBACKS", "")
# Keys that encrypt ODP keys, tokens and parked items in the database, newest first; older ones only decrypt.
FIELD_ENCRYPTION_KEYS = env.words("FIELD_ENCRYPTION_KEYS")
# The port that the default of PUBLIC_URL names; the local runner and compose serve the web process there.
PORT = env.integer("PORT", 8000, least=1, most=65_535)
# The address at which Lytics and people reach this service; the webhook URLs shown start with it.
PUBLIC_URL = env.url("PUBLIC_URL", f"http://127.0.0.1:{PORT}", is_base=True)
# Host names under which this service may be called; calls to any other are refused.
ALLOWED_HOSTS = env.hosts("ALLOWED_HOSTS", f"localhost,127.0.0.1,[::1],{host_of(PUBLIC_URL)}")
# Origins from which the forms of the admin may be sent.
CSRF_TRUSTED_ORIGINS = env.origins("CSRF_TRUSTED_ORIGINS", f"{urljoin(PUBLIC_URL, '/')}")

# --- Receiving -----------------------------------------------------------------------------------------------

# The largest body of a call in bytes, checked as sent and again when decompressed. Lytics gives up for good on
# 413, so a larger body gets a 503; a proxy in front of this service must allow at least as much.
WEBHOOK_BODY_LIMIT = env.integer("WEBHOOK_BODY_LIMIT", 64 * 1024 * 1024, least=1_000_000, most=2**30)
# How many seconds a transition's time may be ahead of this service's clock. A later time would win over every real
# event until then, so it is ignored: the message's own time counts, else the time of the call.
CLOCK_TOLERANCE_SECONDS = env.number("CLOCK_TOLERANCE_SECONDS", 300, least=1, most=86_400)
_NOBODY = (
    "null,nil,none,undefined,nan,infinity,n/a,#n/a,unknown,anonymous,notset,not_set,"
    "[object object],[object undefined],[object null],\\n"
)
# Placeholders, compared without case, blanks, invisible and control characters, and one pair of brackets or quotes. As
# an identifier, each would be a customer in every audience. Nothing but zeros counts too. A comma alone switches both
# off.
PLACEHOLDER_IDENTIFIERS = frozenset(map(placeholder, env.words("PLACEHOLDER_IDENTIFIERS", _NOBODY)))
# The number of events that wait per install, without paused and blocked audiences, above which calls get a 503.
BACKLOG_HIGH_WATER = env.integer("BACKLOG_HIGH_WATER", 50_000_000, least=1_000, most=10**12)
# How many seconds the body of a call may take to arrive; a longer one gets a 503. The same limit holds for a
# caller that reads nothing of its response.
WEBHOOK_READ_SECONDS = env.number("WEBHOOK_READ_SECONDS", 60, least=1, most=3_600)
# The size of the database in bytes above which calls get a 503 until it falls again; 0 for no limit.
DATABASE_HIGH_WATER_BYTES = env.integer("DATABASE_HIGH_WATER_BYTES", 0, least=10**8, most=10**15, zero=True)
# The Retry-After of a 503, in seconds.
RETRY_AFTER_SECONDS = env.integer("RETRY_AFTER_SECONDS", 30, least=1, most=3_600)
# The longest random Retry-After, in seconds, after a short failure of PostgreSQL, such as a restart or a deadlock.
# The shortest is one second. One response stops a whole Lytics job for that long.
RETRY_SOON_SECONDS = env.integer("RETRY_SOON_SECONDS", 3, least=1, most=3_600)
# Calls with a wrong token per address, minute and web process after which such calls get a 429; 0 for no limit.
# Callers with a valid token are never counted.
BAD_TOKENS_PER_MINUTE = env.integer("BAD_TOKENS_PER_MINUTE", 60, least=0, most=1_000_000)
# Whether a proxy of ours is in front, so that its X-Forwarded-Proto and X-Forwarded-For are trusted.
BEHIND_PROXY = env.flag("BEHIND_PROXY", False)
# The number of our proxies one behind the other, and so of the trusted last entries of X-Forwarded-For.
TRUSTED_PROXIES = env.integer("TRUSTED_PROXIES", 1, least=1, most=32)

# --- Delivering ----------------------------------------------------------------------------------------------

# How many seconds one request to ODP may take, from connecting to the last byte of the response.
DELIVERY_DEADLINE_SECONDS = env.number("DELIVERY_DEADLINE_SECONDS", 8, least=1, most=600)
# How many seconds a claim on a lane lasts; one audience waits that long after its worker was killed. It must be longer
# than the deadline, which a system check ensures.
LEASE_SECONDS = env.number("LEASE_SECONDS", 11, least=3, most=3_600)
# How many seconds one drain task works at most. While other tasks wait for a slot it ends after one request.
DRAIN_SECONDS = env.number("DRAIN_SECONDS", 5, least=0.1, most=60)
# The interval in seconds at which a sweep looks for waiting events whose hint was lost.
SWEEP_SECONDS = env.number("SWEEP_SECONDS", 1, least=0.1, most=60)
# How many seconds ODP gets to apply a request that timed out, before its customers are reconciled. Customers for
# whom something newer was sent in the meantime are sent again.
RECONCILE_AFTER_SECONDS = env.number("RECONCILE_AFTER_SECONDS", 300, least=1, most=86_400)
# The interval in seconds at which new events are summarised for the search for one customer.
SUMMARISE_SECONDS = env.number("SUMMARISE_SECONDS", 30, least=1, most=3_600)
# The first backoff in seconds after ODP could not take a request; it doubles from there.
BACKOFF_FIRST_SECONDS = env.number("BACKOFF_FIRST_SECONDS", 0.5, least=0.1, most=3_600)
# The longest backoff in seconds after ODP could not take a request.
BACKOFF_LONGEST_SECONDS = env.number("BACKOFF_LONGEST_SECONDS", 60, least=0.1, most=3_600)
# The fixed backoff in seconds after a failure that a person has to correct, such as a key that ODP rejects. Others
# are a host that does not respond as ODP, and an error of this service.
BACKOFF_FIXED_SECONDS = env.number("BACKOFF_FIXED_SECONDS", 30, least=1, most=3_600)
# The longest Retry-After of ODP that is obeyed, in seconds.
ODP_LONGEST_RETRY_AFTER_SECONDS = env.number(
    "ODP_LONGEST_RETRY_AFTER_SECONDS", LONGEST_RETRY_AFTER, least=1, most=86_400
)
# Whether a 2xx of ODP without a body counts as delivered. ODP documents a body, and a proxy may answer so.
ODP_EMPTY_IS_ACCEPTED = env.flag("ODP_EMPTY_IS_ACCEPTED", False)

# The body of a passthrough audience's definition, as a JSON object. What ODP expects there is not published.
ODP_PASSTHROUGH_DEFINITION = env.json_object("ODP_PASSTHROUGH_DEFINITION")

# Hosts beside ODP's own that an install may send to. Where PUBLIC_URL names this machine, as in a trial, any will do.
ALLOWED_ODP_HOSTS = env.exact_hosts("ALLOWED_ODP_HOSTS")

# How many seconds a guided change waits until ODP shows a sample by the new definition. After that, the
# audience is brought back and the change ends.
CHANGE_VERIFY_SECONDS = env.number("CHANGE_VERIFY_SECONDS", 600, least=1, most=86_400)

# --- Lytics' API ---------------------------------------------------------------------------------------------

# The base URL of Lytics' API.
LYTICS_API_URL = env.url("LYTICS_API_URL", "https://api.lytics.io", is_base=True)
# The deadline of one request to Lytics' API, in seconds.
LYTICS_API_SECONDS = env.number("LYTICS_API_SECONDS", 30, least=1, most=600)

# --- Audits --------------------------------------------------------------------------------------------------

# The interval in hours at which each audience is compared in Lytics, here and in ODP; 0 for only when asked.
AUDIT_HOURS = env.integer("AUDIT_HOURS", 24, least=0, most=8_760)
# How the schedule audits: quick (sizes), sample, or full (every person).
AUDIT_MODE = env.one_of("AUDIT_MODE", ("quick", "sample", "full"), "sample")
# The number of people about whom ODP is asked in a sample, beside those who differed in the audit before.
AUDIT_SAMPLE = env.integer("AUDIT_SAMPLE", 1_000, least=1, most=1_000_000)
# Requests per second of an audit to Lytics' API. A page has 100 members.
AUDIT_LYTICS_REQUESTS_PER_SECOND = env.number("AUDIT_LYTICS_REQUESTS_PER_SECOND", 20, least=0.25, most=1_000)
# Queries per second of an audit to ODP, which documents a limit of 500. Large queries cost it more than small ones.
AUDIT_ODP_REQUESTS_PER_SECOND = env.number("AUDIT_ODP_REQUESTS_PER_SECOND", 4, least=0.25, most=500)
# The number of customers in one query.
AUDIT_CUSTOMERS_PER_REQUEST = env.integer("AUDIT_CUSTOMERS_PER_REQUEST", 1_000, least=1, most=10_000)
# How many seconds an audit waits before it reads Lytics, whose API may lag behind its calls (not documented).
AUDIT_SCAN_DELAY_SECONDS = env.number("AUDIT_SCAN_DELAY_SECONDS", 30, least=0, most=86_400)
# How many seconds an audit waits for calls under way, and for ODP to show what it accepted (90 documented).
AUDIT_SETTLE_SECONDS = env.number("AUDIT_SETTLE_SECONDS", 120, least=0, most=86_400)
# A repair that changes more than this percentage of the people compared needs a person's confirmation.
REPAIR_PERCENT = env.number("REPAIR_PERCENT", 1, least=0, most=100)

# --- Retention -----------------------------------------------------------------------------------------------

# A hundred years. With more days, PostgreSQL's calendar ends.
LONGEST_RETENTION = 36_500
# Days that calls stay; 0 keeps them. docs/retention.md lists the rows of each kind that stay longer.
RECEIPTS_KEEP_DAYS = env.integer("RECEIPTS_KEEP_DAYS", 90, least=0, most=LONGEST_RETENTION)
# Days that the bodies of requests to ODP stay; 0 keeps them as long as their deliveries.
REQUESTS_KEEP_DAYS = env.integer("REQUESTS_KEEP_DAYS", 14, least=0, most=LONGEST_RETENTION)
# Days that deliveries stay; 0 keeps them.
DELIVERIES_KEEP_DAYS = env.integer("DELIVERIES_KEEP_DAYS", 90, least=0, most=LONGEST_RETENTION)
# Days that runs, the sync history, stay; 0 keeps them. A run stays at least as long as its delivery.
RUNS_KEEP_DAYS = env.integer("RUNS_KEEP_DAYS", 90, least=0, most=LONGEST_RETENTION)
# Days that parked items stay after they were closed; 0 keeps them. Open items always stay.
PARKED_KEEP_DAYS = env.integer("PARKED_KEEP_DAYS", 90, least=0, most=LONGEST_RETENTION)
# Days that audits and their differences stay; 0 keeps them. The newest audit of each audience always stays.
AUDITS_KEEP_DAYS = env.integer("AUDITS_KEEP_DAYS", 90, least=0, most=LONGEST_RETENTION)
# Days that resolved troubles and their messages stay; 0 keeps them.
TROUBLES_KEEP_DAYS = env.integer("TROUBLES_KEEP_DAYS", 90, least=0, most=LONGEST_RETENTION)
# Days that the counts per minute stay, from which charts are drawn; 0 keeps them.
STATISTICS_KEEP_DAYS = env.integer("STATISTICS_KEEP_DAYS", 7, least=0, most=LONGEST_RETENTION)
# Days that events, the log, stay; 0 keeps them. An event stays at least as long as its run.
EVENTS_KEEP_DAYS = env.integer("EVENTS_KEEP_DAYS", 0, least=0, most=LONGEST_RETENTION)

# --- Alerts --------------------------------------------------------------------------------------------------

# Addresses that get an e-mail for each new and each resolved trouble of the page Now.
ALERT_EMAILS = env.emails("ALERT_EMAILS")
# A webhook that takes Slack's JSON; its URL is a secret.
ALERT_SLACK_URL = env.url("ALERT_SLACK_URL", "")
# A webhook that gets JSON signed by the Standard Webhooks specification.
ALERT_WEBHOOK_URL = env.url("ALERT_WEBHOOK_URL", "")
# The secret of ALERT_WEBHOOK_URL: base64 of 24 to 64 random bytes, after whsec_.
ALERT_WEBHOOK_SECRET = env.text("ALERT_WEBHOOK_SECRET", "")
# Hours in which only bad troubles are notified, such as 22:00-07:00 Europe/Berlin; without a zone they are UTC.
ALERT_QUIET_HOURS = env.text("ALERT_QUIET_HOURS", "")
# The mail server's host name.
EMAIL_HOST = env.host("EMAIL_HOST", "localhost")
# The mail server's port.
EMAIL_PORT = env.integer("EMAIL_PORT", 25, least=1, most=65_535)
# The user name for the mail server; without one there is no login.
EMAIL_HOST_USER = env.text("EMAIL_HOST_USER", "")
# The password for the mail server.
EMAIL_HOST_PASSWORD = env.text("EMAIL_HOST_PASSWORD", "")
# Whether the connection to the mail server changes to TLS (STARTTLS, usually port 587).
EMAIL_USE_TLS = env.flag("EMAIL_USE_TLS", False)
# Whether the connection to the mail server begins with TLS (usually port 465).
EMAIL_USE_SSL = env.flag("EMAIL_USE_SSL", False)
# The sender of e-mails.
DEFAULT_FROM_EMAIL = env.email("DEFAULT_FROM_EMAIL", "lytics-sync@localhost")
EMAIL_TIMEOUT = 10
EMAIL_BACKEND = "audiences.operations.mail_backend.EmailBackend"

# --- Servers -------------------------------------------------------------------------------------------------

# How many seconds one database round trip of a web process may take before its session is closed; 0 for no limit. A
# call is allowed one more second per megabyte of its body. Commands and migrations have no limit.
DATABASE_WEB_SECONDS = env.number("DATABASE_WEB_SECONDS", 5, least=1, most=3_600, zero=True)
# How many seconds one database round trip of a worker may take before its session is closed; 0 for no limit.
DATABASE_WORKER_SECONDS = env.number("DATABASE_WORKER_SECONDS", 60, least=1, most=3_600, zero=True)
# Whether statements are prepared; off behind a transaction pool that cannot keep prepared statements.
PREPARED_STATEMENTS = env.flag("PREPARED_STATEMENTS", True)
# The address of PostgreSQL, as libpq reads it.
DATABASES = {"default": database_url.read(env.text("DATABASE_URL"), prepared=PREPARED_STATEMENTS)}
# The path of database backups as this process sees it; * and ? are wildcards. The doctor shows the age of the newest
# file. When it is empty, the doctor says that the age is unknown.
BACKUP_FILE = env.text("BACKUP_FILE", "")
# The address of Redis, which carries hints only.
REDIS_URL = redis_url.read(env.text("REDIS_URL"))
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}

# Celery carries hints only; everything that has to last is in PostgreSQL.
CELERY_BROKER_URL = REDIS_URL
# Celery accepts any certificate by default; the rest of this service verifies it, so Celery does too.
if REDIS_URL.startswith("rediss://") and "ssl_cert_reqs=" not in REDIS_URL:
    CELERY_BROKER_USE_SSL = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": 60,
    "socket_timeout": 5,
    "socket_connect_timeout": 2,
    "health_check_interval": 10,
    "global_keyprefix": "lytics-sync:",
}
CELERY_BROKER_POOL_LIMIT = 4
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
# A Redis that answers and refuses, because its memory is full or it became a replica, would end every worker.
CELERY_BROKER_CHANNEL_ERROR_RETRY = True
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_PUBLISH_RETRY = False
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_TASK_DEFAULT_QUEUE = "drain"
# Each worker also has its own queue for its heartbeats.
CELERY_WORKER_DIRECT = True
# The interval in seconds at which a worker sends itself a heartbeat. A worker that received none for 4.5 intervals is
# not ready.
HEARTBEAT_SECONDS = env.number("HEARTBEAT_SECONDS", 10, least=0.1, most=600)
# The interval in minutes at which each install tests with a customer whether ODP shows what is sent; 0 for never.
# After a failure and after a changed connection the next one follows sooner.
PROBE_MINUTES = env.number("PROBE_MINUTES", 15, least=0.25, most=43_200, zero=True)
# The interval in minutes of looks at audiences in ODP and at the audiences of Lytics jobs; 0 for never. Each time, one
# request lists all audiences of the account in ODP, and the definitions of some are read.
LOOK_MINUTES = env.number("LOOK_MINUTES", 15, least=0.25, most=43_200, zero=True)
# How many seconds deliverable work may stand still before /health/workers and the health of workers are red.
WORK_STUCK_SECONDS = env.number("WORK_STUCK_SECONDS", 60, least=1, most=86_400)
# The bearer token for GET /metrics, which Prometheus scrapes; without it that page is a 404.
METRICS_TOKEN = env.text("METRICS_TOKEN", "")
# Whether traces are sent to an OpenTelemetry collector (otlp) or not (none).
OTEL_TRACES_EXPORTER = env.one_of("OTEL_TRACES_EXPORTER", ("none", "otlp"), "none")
# Whether requests to ODP have the header traceparent; ODP doesn't document what it does with it.
ODP_TRACEPARENT = env.flag("ODP_TRACEPARENT", False)
# The port on which a worker serves GET /health/ready; 0 for none.
WORKER_HEALTH_PORT = env.integer("WORKER_HEALTH_PORT", 0, least=0, most=65_535)
# Seconds after which a worker drops an unread message. Celery compares the sender's clock with the worker's, so this
# is also the largest allowed clock difference: a worker that is further ahead drops every message.
HINT_EXPIRES_SECONDS = 600
CELERY_BEAT_SCHEDULE = {
    name: {"task": f"workers.tasks.{name}", "schedule": seconds, "options": {"expires": HINT_EXPIRES_SECONDS}}
    for name, seconds in {
        "sweep": SWEEP_SECONDS,
        "reconcile": 10,
        "summarise": SUMMARISE_SECONDS,
        "roll_up": 60,
        "clear_sessions": 86_400,
        "prune": 30,
        "probe": 15,
        "look_at_twins": 15,
        "look_at_jobs": 60,
        "ask_audits": 5,
        "look_at_certificate": 600,
        "check_troubles": 60,
        "send_alerts": 10,
    }.items()
}

# --- Django --------------------------------------------------------------------------------------------------

INSTALLED_APPS = [
    "audiences",  # before unfold, because it overrides one of its templates
    "workers",  # for its commands
    "unfold",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "rest_framework",
    "axes",
]
MIDDLEWARE = [
    "lytics_sync.request_id.request_id",
    "lytics_sync.once_more.once_more",
    "lytics_sync.security.security_headers",
    # Calls of Lytics are answered here; what follows is for pages.
    "lytics_sync.routing.routing",
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "lytics_sync.security.without_nul",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "axes.middleware.AxesMiddleware",
]
AUTHENTICATION_BACKENDS = ["axes.backends.AxesBackend", "django.contrib.auth.backends.ModelBackend"]
ROOT_URLCONF = "lytics_sync.urls"
WSGI_APPLICATION = "lytics_sync.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        # Before unfold's templates, one of which is overridden.
        "DIRS": [BASE_DIR / "audiences" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
FORMAT_MODULE_PATH = "lytics_sync.formats"
USE_I18N = False
USE_TZ = True
STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
# The body limit is the webhook view's own; Django's would answer 400, which Lytics never retries.
DATA_UPLOAD_MAX_MEMORY_SIZE = None
APPEND_SLASH = True
LOGIN_URL = reverse_lazy("admin:login")
# unfold's login form doesn't say where to go next.
LOGIN_REDIRECT_URL = reverse_lazy("admin:index")

SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if BEHIND_PROXY else None
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = PUBLIC_URL.startswith("https://")
SESSION_COOKIE_HTTPONLY = True
X_FRAME_OPTIONS = "DENY"

# Wrong passwords for one account from one address after which its login is locked for 15 minutes.
AXES_FAILURE_LIMIT = env.integer("LOGIN_FAILURE_LIMIT", 10, least=1, most=10_000)
# Wrong passwords from one address, over all accounts, after which every login from there is locked; 0 for no limit.
LOGIN_ADDRESS_FAILURE_LIMIT = env.integer("LOGIN_ADDRESS_FAILURE_LIMIT", 50, least=0, most=1_000_000)
AXES_HANDLER = "audiences.logins.Limits"
AXES_COOLOFF_TIME = timedelta(minutes=15)
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
# The client's own address behind a proxy: by the proxy's, anybody could lock every account out for everybody.
AXES_CLIENT_IP_CALLABLE = "audiences.logins.source"
AXES_RESET_ON_SUCCESS = True
AXES_LOCKOUT_TEMPLATE = "audiences/locked_out.html"
AXES_DISABLE_ACCESS_LOG = True
AXES_ENABLE_ADMIN = False
AXES_VERBOSE = False

REST_FRAMEWORK = {
    "UNAUTHENTICATED_USER": None,
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": [],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": [],
}

UNFOLD = admin_theme.UNFOLD

# The format of log lines: text is key=value pairs, json is one object per line. It holds for every process, with the
# lines of gunicorn and Celery (lytics_sync/logs.py).
LOG_FORMAT = env.one_of("LOG_FORMAT", logs.FORMATS, "text")
# The lowest level that is logged.
LOG_LEVEL = env.one_of("LOG_LEVEL", logs.LEVELS, "INFO")
LOGGING_CONFIG = "lytics_sync.logs.begin"
LOGGING = logs.config(form=LOG_FORMAT, level=LOG_LEVEL)
logs.configure_structlog()
