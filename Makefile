# What continuous integration runs, and what a developer runs before a commit: the same steps, cheapest first.
#
#   make verify                   everything that must hold: format, lints, unit tests, end-to-end tests (one profile)
#   make verify-full PART=kills   50 kills under load, and every fail point in turn
#   make verify-full PART=cluster  40 kills of node, Fluvio and S3 server in turn
#   make verify-full PART=day     a day of 100 million clicks by both paths, within 1 GiB each
#   make verify-full PART=size    ingest and recompute at full size, measured in the release profile
#   make verify-full PART=peers   the recompute against DuckDB over the same files
#   make verify-full PART=fuzz    10 minutes of each fuzz target
#   make demo                     the same as ./quickstart

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: help verify format oracle lint doctests tests verify-full demo

help:
	@sed -n 's/^#   //p' Makefile

# Each step has its own heading, so that a log shows where the time went; the runner's summary comes last.
verify: format oracle lint doctests tests

format:
	@echo "==> format"
	cargo fmt --all --check

oracle:
	@echo "==> unit tests of the oracle (Python)"
	"$$(tests/python-env)" -m unittest discover -s tests/oracle -p 'test_*.py'

lint:
	@echo "==> lints (the first run compiles every dependency)"
	cargo clippy --workspace --all-targets -- -D warnings

doctests:
	@echo "==> doctests"
	cargo test --workspace --doc

# nextest where it is installed, cargo's own runner where it is not; the end-to-end tests take turns under both.
tests:
	@echo "==> unit tests and end-to-end tests"
	@export TWICE_TEST_PYTHON="$$(tests/python-env)" TWICE_TEST_SKIPPED="$$(mktemp)"; \
	status=0; \
	if cargo nextest --version >/dev/null 2>&1; then \
		cargo nextest run --workspace --no-fail-fast || status=$$?; \
	else \
		cargo test --workspace --no-fail-fast --lib --bins --tests || status=$$?; \
	fi; \
	if [ -s "$$TWICE_TEST_SKIPPED" ]; then \
		echo "==> $$(wc -l < "$$TWICE_TEST_SKIPPED") tests were skipped:"; sort "$$TWICE_TEST_SKIPPED"; \
	fi; \
	rm -f "$$TWICE_TEST_SKIPPED"; exit $$status

verify-full:
	@tests/verify-full "$(PART)"

demo:
	@./quickstart
