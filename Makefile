# Everything a newcomer needs: `make run`. It takes Python ≥ 3.11 and make, and changes nothing outside this folder.

# Another Python: make run PYTHON=/usr/bin/python3.13. Otherwise the first of PYTHONS that is new enough.
PYTHONS := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
VENV := .venv
PY := $(VENV)/bin/python

# A checksum of the lock files names what is installed: a second run installs nothing, a changed list installs again.
LISTS := $(shell cat requirements.lock requirements-dev.lock 2>/dev/null | cksum | cut -d ' ' -f 1)

# The checks need settings but no server. Nothing listens at these addresses, and none of the values is secret.
DUMMY := SECRET_KEY=checks-only-not-secret-and-long-enough-to-please-the-deployment-checks \
	FIELD_ENCRYPTION_KEYS=MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY= \
	DATABASE_URL=postgres://nobody@127.0.0.1:1/none REDIS_URL=redis://127.0.0.1:1/0 DATA_DIR=$(VENV)/none

# pytest caches compiled tests as bytecode; without the cache each start takes 5 s longer.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run demo up test coverage check audit migrations lock images chaos comeback soak fuzz bench bench-quick pictures drawings settings metrics clean installed installed-dev

help:
	@echo 'make run       the whole stack, an ODP sandbox and sample events; stays up until Ctrl-C'
	@echo 'make demo      the same, then exits: with 0 only if every audience has the same members in ODP'
	@echo 'make up        the stack alone, for a real pair of accounts'
	@echo 'make test      the test suite (make test ARGS="-k lanes" for a part of it)'
	@echo 'make coverage  the test suite with its line coverage, which is shown and not enforced (ARGS as for make test)'
	@echo 'make chaos     kills processes under load, then compares the result (EVENTS, KILLS, SEED)'
	@echo 'make comeback  measures the time to the next delivery after each kind of kill'
	@echo 'make soak      a steady rate for MINUTES (120), and whether anything grows (RATE, AUDIENCES, SEED)'
	@echo 'make fuzz      malformed calls and the models of delivery, for longer (SECONDS=300, SEED, EXAMPLES=200)'
	@echo 'make bench     all benchmarks, about an hour; writes docs/benchmarks.md (ONLY, WRITE=1, SCALE, ROUNDS, MEMBERS)'
	@echo 'make bench-quick  compares the ratios with the stored ones; under two minutes'
	@echo 'make check     format, lint, types, migrations, system checks'
	@echo 'make migrations  writes the migration for a change of the models'
	@echo 'make audit     checks the locked packages for known vulnerabilities'
	@echo 'make lock      writes the .lock lists (all packages, with hashes) from the .txt lists'
	@echo 'make images    pins the base images to the current digests of their tags; needs Docker'
	@echo 'make pictures  writes docs/pictures with the Chromium of this machine'
	@echo 'make drawings  writes docs/rooms.md from the imports of the code'
	@echo 'make settings  writes docs/settings.md from lytics_sync/settings.py, and docs/doctor.md from the checks'
	@echo 'make metrics   writes docs/metrics.md from the metrics that GET /metrics has'
	@echo 'make clean     removes the virtual environment and caches; DATA_DIR stays'
	@echo
	@echo 'PORT (8000) and DATA_DIR (.data) choose where run, demo and up work.'

run demo up: installed
	@exec $(PY) -m local $@

# The suite runs in PROCESSES processes, each with its own PostgreSQL and Redis-compatible server. More than the cores,
# because tests wait as much as they work.
PROCESSES := 4
TESTS = $(or $(ARGS),--numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder)
test: installed-dev
	@exec $(PY) -m pytest $(TESTS)

# Coverage is shown and not enforced: an executed line proves no promise. Code that runs only in child processes counts
# as missing.
coverage: installed-dev
	@exec $(PY) -m pytest --cov --cov-report term-missing:skip-covered $(TESTS)

# Checks every locked package that the service can run on. An unreachable index is a failure too, except with AUDIT_OFFLINE=1.
audit: installed-dev
	@said=$$($(PY) -m pip_audit -r requirements-tracing.lock --require-hashes --disable-pip --progress-spinner off 2>&1); found=$$?; \
	echo "$$said" | tail -n 40 | cut -c 1-200; \
	case "$$said" in \
	*Traceback*|*'could not be audited'*) echo 'NOT AUDITED: the package index could not be asked about all of them.'; test -n "$(AUDIT_OFFLINE)" ;; \
	*) exit $$found ;; \
	esac

# After a change of a requirements….txt: every package they need, with its hashes, for every platform.
lock: installed-dev
	@for list in requirements requirements-tracing requirements-dev; do \
		$(PY) -m uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --quiet $$list.txt --output-file $$list.lock || exit 1; done

# Each tag's present digest, of the index over all platforms. Read what has changed in the image before you commit.
images:
	@script=; for image in $$(sed -nE 's/^(FROM| *image:) ([^ @]+)@sha256:.*/\2/p' Dockerfile docker-compose.yml); do \
		digest=$$(docker buildx imagetools inspect "$$image" --format '{{.Manifest.Digest}}') || exit 1; \
		echo "$$digest" | grep -qE '^sha256:[0-9a-f]{64}$$' || { echo "no digest for $$image: $$digest" >&2; exit 1; }; \
		echo "$$image@$$digest"; script="$$script;s#$$image@sha256:[0-9a-f]+#$$image@$$digest#"; \
	done; sed -i.before -E "$$script" Dockerfile docker-compose.yml && rm Dockerfile.before docker-compose.yml.before

# EVENTS, KILLS, OTHERS, AUDIENCES, SEED and TWIN are read from the environment, where make puts its own arguments.
chaos: installed-dev
	@exec $(PY) -m tests.chaos $(ARGS)

# 1,000 events a second from a sender that obeys Retry-After; each process killed, PostgreSQL included, one at a time.
comeback: installed-dev
	@exec $(PY) -m tests.chaos --obedient --within 10 --gap 12 --times 20 --events $(or $(EVENTS),1950000) \
		--faults postgres_restarted,postgres,postgres_twice,web,web_worker,worker,beat,broker $(ARGS)

# MINUTES, RATE, AUDIENCES and SEED are read from the environment, as above. An hour or more replaces docs/soak.md.
soak: installed-dev
	@exec $(PY) -m tests.soak $(ARGS)

# SECONDS are for bodies and requests, half of them each; the models have EXAMPLES, which take some minutes more. A SEED repeats.
fuzz: installed-dev
	@FUZZ_SECONDS=$$(( $(or $(filter-out 0,$(SECONDS)),300) / 2 )) MODEL_EXAMPLES=$(or $(EXAMPLES),200) exec $(PY) -m pytest -rP \
		tests/test_fuzz.py tests/test_protocol_model.py tests/test_state_machine.py $(ARGS)

# SCALE, ROUNDS, ONLY, WRITE and MEMBERS are read from the environment, as above.
bench: installed
	@exec $(PY) -m benchmarks $(ARGS)

bench-quick: installed
	@exec $(PY) -m benchmarks --quick $(ARGS)

check: installed-dev
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(DUMMY) $(PY) -m mypy .
	@# It warns that it can't ask the database for its history; what matters is whether the models have moved.
	$(DUMMY) $(PY) -W ignore::RuntimeWarning manage.py makemigrations --check --dry-run
	$(DUMMY) $(PY) manage.py check --fail-level WARNING

migrations: installed-dev
	$(DUMMY) $(PY) -W ignore::RuntimeWarning manage.py makemigrations

pictures: installed-dev
	@exec $(PY) -m tests.browser.pictures

drawings: installed-dev
	@exec $(PY) -m tests.drawings

settings: installed-dev
	@$(PY) -m tests.settings_page
	@$(DUMMY) DJANGO_SETTINGS_MODULE=lytics_sync.settings $(PY) -m tests.doctor_page

metrics: installed-dev
	@$(DUMMY) exec $(PY) -m tests.metrics_page

clean:
	rm -rf $(VENV) staticfiles .mypy_cache .ruff_cache .pytest_cache .hypothesis

installed:
	@test -x $(PY) -a -e $(VENV)/run-$(LISTS) || { $(call install,requirements.lock,run); }

installed-dev:
	@test -x $(PY) -a -e $(VENV)/dev-$(LISTS) || { $(call install,requirements-dev.lock,dev run); }

# install(list, what that makes ready): one sentence for each thing that people are known to lack.
define install
fail() { echo "$$*" >&2; exit 1; }; \
for place in $(VENV) .; do test ! -e $$place -o -w $$place || \
	fail "$$PWD/$$place can't be written to: the disk is read-only, or another user owns it. Use a checkout of your own."; done; \
if ! $(PY) -c '$(NEW_ENOUGH)' 2>/dev/null || ! $(PY) -m pip --version >/dev/null 2>&1; then \
	for python in $(PYTHONS); do "$$python" -c '$(NEW_ENOUGH)' 2>/dev/null && break || python=; done; \
	test "$$python" || fail 'Python 3.11 or newer is needed, and none of these is: $(PYTHONS). Name one with PYTHON=/path/to/python.'; \
	said=$$("$$python" -m venv --clear $(VENV) 2>&1) || { rm -rf $(VENV); echo "$$said" | tail -n 5 >&2; \
		fail "$$python could not make a virtual environment; on Debian and Ubuntu that takes the package python3-venv."; }; \
fi; \
echo 'Installing into $(VENV); this takes a minute, once.'; \
$(PY) -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-input --require-hashes -r $(1) >$(VENV)/install.log 2>&1 || { \
	tail -n 5 $(VENV)/install.log >&2; fail 'Installing failed; the lines above say why, and $(VENV)/install.log says more.'; }; \
for stamp in $(VENV)/run-* $(VENV)/dev-*; do case $$stamp in *-$(LISTS)) ;; *) rm -f $$stamp ;; esac; done; \
for what in $(2); do touch $(VENV)/$$what-$(LISTS); done
endef

# Or make would look for ways to remake this file, and find the rule below.
Makefile: ;

.DEFAULT:
	@echo "There is no target '$@'; make help lists those there are." >&2; exit 2
