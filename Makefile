# Targets say what they do; `make help` lists them. What is built once (Kubernetes binaries, images, models) is cached by
# content hash in $(FINETUNE_CACHE).
SHELL := /bin/bash
.DEFAULT_GOAL := help
export FINETUNE_CACHE ?= $(HOME)/.cache/finetune-operator
PYTHON ?= python3
UV := $(FINETUNE_CACHE)/uv/bin/uv
PY := .venv/bin/python
LOCK = $(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
       --no-header --no-annotate --no-emit-package finetune-operator pyproject.toml
CHART_FILES := charts/finetune-operator/files

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

## -- set-up ---------------------------------------------------------------------------------------------------------

$(UV): requirements/uv.txt
	@mkdir -p $(FINETUNE_CACHE)
	@$(PYTHON) -m venv $(FINETUNE_CACHE)/uv >/dev/null 2>&1 || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	    || { echo "python3-venv is missing; install it (apt-get install python3-venv) and run make again"; exit 1; }; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv \
	    && $(PYTHON) -m venv --clear $(FINETUNE_CACHE)/uv; }
	@$(FINETUNE_CACHE)/uv/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@

.venv/.ready: $(UV) requirements/dev.txt pyproject.toml
	@[ -x $(PY) ] || $(UV) venv -q --python $(PYTHON) .venv
	@echo "Installing the locked Python environment (.venv, 6.5 GB with CUDA libraries; minutes when nothing is cached) ..."
	@$(UV) pip sync -q --compile-bytecode --python $(PY) --require-hashes requirements/dev.txt
	@$(UV) pip install -q --python $(PY) --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: setup
setup: .venv/.ready ## Make .venv from the locked requirements; `.venv/bin/finetune` is the command line

.PHONY: lock
lock: $(UV) ## Resolve the newest versions that pyproject.toml allows into requirements/*.txt
	$(LOCK) --upgrade --extra dev -o requirements/dev.txt
	for set in operator trainer gateway local; do $(LOCK) --extra $$set -c requirements/dev.txt -o requirements/$$set.txt; done

.PHONY: generate
generate: setup ## Write what is generated: CRDs, reference pages, the chart's copies of manifests
	$(PY) -m finetune_api manifests/crd
	$(PY) manifests/monitoring/dashboards.py manifests/monitoring/dashboards
	rm -rf $(CHART_FILES) && mkdir -p $(CHART_FILES)/{crd,policy,rbac,tenant,monitoring,console}
	cp -r manifests/monitoring/{monitors.yaml,rules.yaml,dashboards} $(CHART_FILES)/monitoring
	cp manifests/crd/*.yaml $(CHART_FILES)/crd && cp manifests/policy/*.yaml $(CHART_FILES)/policy
	cp manifests/tenant/*.yaml $(CHART_FILES)/tenant
	cp manifests/console/*.yaml $(CHART_FILES)/console
	cp manifests/rbac/{operator,own_namespace,users}.yaml $(CHART_FILES)/rbac
	rm -f $(CHART_FILES)/*/kustomization.yaml
	$(PY) -m finetune_api.reference docs/finetunejob.md
	$(PY) -m finetune_operator.cli.reference docs/cli.md
	$(PY) -m finetune_operator.core.reasons docs/reasons.md
	$(PY) manifests/monitoring/reference.py docs/metrics.md

## -- use ------------------------------------------------------------------------------------------------------------

.PHONY: demo
demo: setup ## Run the main job on this machine: a real model, real data, a verdict and a report
	@$(PY) demo/run.py

.PHONY: cluster-up cluster-down
cluster-up: setup ## Start a real Kubernetes with the operator, to play with (root)
	@$(PY) -m tests.harness up && $(PY) -m tests.cluster.playground
cluster-down: setup ## Remove it
	@$(PY) -m tests.harness down

## -- tests ----------------------------------------------------------------------------------------------------------

LAYERS := lint unit trainer local browser api cluster chart
OPT_IN := vllm gangs

.PHONY: test
test: setup ## All layers; says what was skipped and why
	@$(PY) tests/run_layers.py $(LAYERS)

.PHONY: $(addprefix test-,$(LAYERS) $(OPT_IN))
$(addprefix test-,$(LAYERS) $(OPT_IN)): test-%: setup
	@$(PY) tests/run_layers.py $*

.PHONY: test-models
test-models: setup ## All methods on all families of docs/models.md, by hand
	@FINETUNE_ALL_MODELS=1 $(PY) -m pytest -q tests/trainer/test_matrix.py

.PHONY: lint format
lint: test-lint ## ruff, mypy --strict, import-linter
format: setup ## Format the code
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix .

.PHONY: bench-operator bench-training bench-gate bench-gateway bench-rollback bench-serving
bench-operator: setup ## Apply-to-pods latency and memory, beside a bare Job and Kubeflow Trainer (root)
	@$(PY) -m tests.bench.operator
bench-training: setup ## Tokens per second beside a plain TRL script
	@$(PY) -m tests.bench.training
bench-gate: setup ## Error rates of the statistics, by simulation
	@$(PY) -m tests.bench.gate
bench-gateway: setup ## What the gateway adds to a request, beside a bare proxy and LiteLLM
	@$(PY) -m tests.bench.gateway --uv $(UV)
bench-rollback: setup ## From the first bad answer to all traffic on the version before
	@$(PY) -m tests.bench.rollback
bench-serving: setup ## Tokens per processor second at 1, 4, 16 requests, beside transformers' and vLLM's servers
	@$(PY) -m tests.bench.serving --uv $(UV)
