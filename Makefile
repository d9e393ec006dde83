# Everything a newcomer needs: `make run`. It takes Python ≥ 3.11 and make, and changes nothing outside this folder.

# Another Python: make run PYTHON=/usr/bin/python3.13. Otherwise the first of PYTHONS that is new enough.
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
VENV := .venv
PY := $(VENV)/bin/python

# What is installed is known by the contents of the lists, so that a second run costs nothing and a changed list installs.
LISTS := $(shell cat requirements.txt requirements-dev.txt | cksum | cut -d ' ' -f 1)

# Checks need settings and no server: nothing listens there, and nothing here is secret.
DUMMY := SECRET_KEY=checks-only-not-secret-and-long-enough-to-please-the-deployment-checks \
	FIELD_ENCRYPTION_KEYS=MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY= \
	DATABASE_URL=postgres://nobody@127.0.0.1:1/none REDIS_URL=redis://127.0.0.1:1/0 DATA_DIR=$(VENV)/none

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run demo up test check clean installed installed-dev

help:
	@echo 'make run     the whole stack, an ODP sandbox and sample events; stays up until Ctrl-C'
	@echo 'make demo    the same, ends by itself, and succeeds only if every audience is equal in ODP'
	@echo 'make up      the stack alone, for a real pair of accounts'
	@echo 'make test    the test suite (make test ARGS="-k lanes" for a part of it)'
	@echo 'make check   format, lint, types, migrations, system checks'
	@echo 'make clean   removes the virtual environment and caches; DATA_DIR stays'
	@echo
	@echo 'PORT (8000) and DATA_DIR (.data) choose where run, demo and up work.'

run demo up: installed
	@exec $(PY) -m lytics_sync.local $@

test: installed-dev
	@exec $(PY) -m pytest $(ARGS)

check: installed-dev
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(DUMMY) $(PY) -m mypy .
	@# It warns that it can't ask the database for its history; what matters is whether the models have moved.
	$(DUMMY) $(PY) -W ignore::RuntimeWarning manage.py makemigrations --check --dry-run
	$(DUMMY) $(PY) manage.py check --fail-level WARNING

clean:
	rm -rf $(VENV) staticfiles .mypy_cache .ruff_cache .pytest_cache .hypothesis

installed:
	@test -x $(PY) -a -e $(VENV)/run-$(LISTS) || { $(call install,requirements.txt,run); }

installed-dev:
	@test -x $(PY) -a -e $(VENV)/dev-$(LISTS) || { $(call install,requirements-dev.txt,dev run); }

# install(list, what that makes ready): one sentence for each thing that people are known to lack.
define install
fail() { echo "$$*" >&2; exit 1; }; \
if ! $(PY) -c '$(NEW_ENOUGH)' 2>/dev/null || ! $(PY) -m pip --version >/dev/null 2>&1; then \
	for python in $(PYTHONS); do "$$python" -c '$(NEW_ENOUGH)' 2>/dev/null && break || python=; done; \
	test "$$python" || fail 'Python 3.11 or newer is needed, and none of these is: $(PYTHONS). Name one with PYTHON=/path/to/python.'; \
	said=$$("$$python" -m venv --clear $(VENV) 2>&1) || { rm -rf $(VENV); echo "$$said" | tail -n 5 >&2; \
		fail "$$python could not make a virtual environment; on Debian and Ubuntu that takes the package python3-venv."; }; \
fi; \
echo 'Installing into $(VENV); this takes a minute, once.'; \
$(PY) -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-input -r $(1) >$(VENV)/install.log 2>&1 || { \
	tail -n 5 $(VENV)/install.log >&2; fail 'Installing failed; the lines above say why, and $(VENV)/install.log says more.'; }; \
for stamp in $(VENV)/run-* $(VENV)/dev-*; do case $$stamp in *-$(LISTS)) ;; *) rm -f $$stamp ;; esac; done; \
for what in $(2); do touch $(VENV)/$$what-$(LISTS); done
endef

# Or make would look for ways to remake this file, and find the rule below.
Makefile: ;

.DEFAULT:
	@echo "There is no target '$@'; make help lists those there are." >&2; exit 2
