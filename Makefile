.DEFAULT_GOAL := help
.PHONY: help run env test chaos soak bench bench-db lint format lock clean

# Which Python makes .venv: 3.11 or newer. Left empty, the first that fits is taken.
PYTHON ?=
export PYTHON

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' Makefile

run: ## Start Faregate; the first time, install it into .venv
	@scripts/bootstrap run
	@exec .venv/bin/faregate serve

env: ## Make deploy/compose/.env with random secrets, for docker compose
	@deploy/compose/make-env

test: lint ## Check style and types, and run all tests, with a short run of the chaos
	.venv/bin/pytest -n 3 --dist loadfile --no-loadscope-reorder

chaos: ## Kill nodes, Redis and the database again and again under load, from printed seeds (an hour)
	@scripts/bootstrap dev
	FAREGATE_CHAOS_KILLS=$${FAREGATE_CHAOS_KILLS:-20} FAREGATE_CHAOS_ROUNDS=$${FAREGATE_CHAOS_ROUNDS:-10} \
	FAREGATE_CHAOS_STREAMS=$${FAREGATE_CHAOS_STREAMS:-1000} \
	FAREGATE_CHAOS_OUTAGE_SECONDS=$${FAREGATE_CHAOS_OUTAGE_SECONDS:-300} \
		.venv/bin/pytest -s tests/chaos

soak: ## Send a million requests of all kinds, and see that nothing of them stays (an hour or more)
	@scripts/bootstrap dev
	FAREGATE_SOAK_REQUESTS=$${FAREGATE_SOAK_REQUESTS:-1000000} .venv/bin/pytest -s tests/soak

bench: ## Measure what the gateway costs beside nginx (NAMES="json paced", LONG=1 for memory too); about ten minutes
	@scripts/bootstrap dev
	.venv/bin/python bench/gateway.py $(if $(LONG),--long) $(NAMES)

bench-db: ## Measure the database with ten million records (ROWS=... for fewer); takes some minutes
	@scripts/bootstrap dev
	.venv/bin/python bench/database.py

lint: ## Check style and types
	@scripts/bootstrap dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

format: ## Format the code and mend what can be mended
	@scripts/bootstrap dev
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

lock: ## Write the lock files anew from pyproject.toml (UPGRADE=1: newest versions)
	@scripts/lock $(if $(UPGRADE),--upgrade)

clean: ## Remove .venv, build and caches; the data stay
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests -type d -name __pycache__ -prune -exec rm -rf {} +
