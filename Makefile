# Two commands matter: `make speedrun` (from real text to your own chat) and `make test`.
.DEFAULT_GOAL := help
# Without its byte code every process compiles a fifth of torch anew: 2 s each.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help setup speedrun smoke test test-cluster rehearsal lint bench wheels lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: ## make .venv from requirements.lock and build the tokenizer
	@.ci/setup

speedrun: setup ## train the tiny preset on real text, evaluate it, ask it a question
	@.venv/bin/nanochat speedrun --preset tiny

smoke: setup ## the whole speedrun on generated text, without network, in under a minute
	@.venv/bin/nanochat speedrun --preset smoke

test: setup ## unit and integration tests
	@.venv/bin/python -m pytest

test-cluster: setup ## the same on a real Kubernetes, built and started here (root; or NANOCHAT_TEST_KUBECONFIG)
	@.venv/bin/python -m pytest -m cluster tests/cluster

rehearsal: setup ## the tiny speedrun on real text, as PyTorchJobs on the test cluster (half an hour)
	@.venv/bin/python -m pytest -m cluster tests/cluster/rehearsal.py

lint: setup ## format, lint, types, import contracts, clippy
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@cd rustbpe && cargo fmt --check && cargo clippy --quiet --all-targets --all-features -- -D warnings

bench: setup ## measure every bar beside its peer; writes tests/bench/results.json
	@.venv/bin/python -m tests.bench

wheels: setup ## build our two wheels into dist/, once for all images
	@rm -rf dist
	@.venv/bin/python -m hatchling build -t wheel -d dist
	@.venv/bin/maturin build --quiet --release -m rustbpe/Cargo.toml -o dist

lock: setup ## resolve the Python dependencies again
	@.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --no-emit-index-url --no-emit-package nanochat-platform --no-emit-package nanochat-rustbpe \
	  --all-extras --group dev -o requirements.lock pyproject.toml

clean: ## remove the environment and build outputs; runs and models stay
	@rm -rf .venv rustbpe/target build dist
