# make demo    three recorded callers, ranked while they speak
# make dev     the whole system behind a tunnel (ngrok or cloudflared), for real calls
# make test    the tests of a change, on the embedded broker and with a browser: five minutes
# make test-all  these, then the others: Apache Kafka, whole systems, crashes; twenty minutes more
# make test-crash SEED=7  kill and freeze processes on a seeded schedule, then compare the packets
# make lint    ruff, mypy and the import contracts
# The first run creates .venv from the lock files; later runs are quick.

VENV ?= .venv
PYTEST_ARGS ?=
SEED ?= 1
BROKER ?= apache

PYTHONS := python3.13 python3.12 python3.11 python3
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
LOCK := $(VENV)/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	--custom-compile-command "make lock"

PYTEST := $(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile
OTHERS := apache_kafka or long

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo dev test test-all test-crash lint format lock clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile
	@echo "make format  format the code and fix what ruff can fix"
	@echo "make lock    renew the lock files from pyproject.toml"
	@echo "make clean   remove everything that the other targets made"

demo: install
	$(VENV)/bin/dispatchai demo

dev: install
	$(VENV)/bin/dispatchai dev

test: install-dev
	$(PYTEST) -m "not ($(OTHERS))" $(PYTEST_ARGS)

test-all: test
	$(PYTEST) -m "$(OTHERS)" $(PYTEST_ARGS)

test-crash: install-dev
	$(VENV)/bin/python -m tests.crash --seeds $(SEED) --broker $(BROKER)

lint: install-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo --no-cache

format: install-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

# A virtual environment from the newest Python that fits.
$(VENV)/.created:
	@found=; for python in $(PYTHONS); do \
		if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then \
			found=$$python; break; \
		fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "DispatchAI needs Python 3.11, 3.12 or 3.13, and none of these is one: $(PYTHONS)." >&2; \
		echo "Install one, e.g. 'sudo apt-get install python3 python3-venv' or 'brew install python@3.13'." >&2; \
		exit 1; \
	fi; \
	echo "Creating $(VENV) with $$($$found --version)"; \
	if ! $$found -m venv --clear $(VENV); then \
		echo "$$found cannot create virtual environments." >&2; \
		echo "On Debian and Ubuntu: 'sudo apt-get install python3-venv', then the same command again." >&2; \
		rm -rf $(VENV); exit 1; \
	fi
	@touch $@

$(VENV)/.installed: $(VENV)/.created requirements.lock requirements-embedded.lock requirements-build.lock pyproject.toml
	@echo "Installing DispatchAI (about 200 MB, once)"
	$(PIP) install --require-hashes -r requirements.lock
	$(PIP) install --require-hashes -r requirements-embedded.lock
	$(PIP) install --require-hashes -r requirements-build.lock
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.lock
	@echo "Installing what the tests need"
	$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@

lock: $(VENV)/.created
	$(PIP) install --quiet "uv>=0.9,<1"
	$(LOCK) --upgrade --output-file requirements.lock pyproject.toml
	$(LOCK) --upgrade --extra dev --extra embedded --constraints requirements.lock --output-file requirements-dev.lock \
		pyproject.toml
	for group in build embedded; do \
		$(LOCK) --upgrade --group pyproject.toml:$$group --constraints requirements-dev.lock \
			--output-file requirements-$$group.lock || exit 1; \
	done

clean:
	rm -rf $(VENV) .ci/.venv .dispatchai tests/support/kafka/libs .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
