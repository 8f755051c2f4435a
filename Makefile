# make help lists what there is. CLUSTER=embedded|current|kind chooses the cluster (see hack/cluster.mk).
.DEFAULT_GOAL := help
SHELL := /bin/bash
include hack/cluster.mk

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
# .cargo/config.toml names the host as Cargo's target: all binaries are static, so that the image needs nothing else.
TARGET := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
# Where the binaries come to lie, those of `make build` and of `make release` alike.
BIN := target/bin
IMAGE := lockstep:$(VERSION)
IMAGE_TAR := target/lockstep-image.tar
AGENTS_TAR := target/example-agents.tar
LANGUAGES_TAR := target/example-outline.tar
SEEDS ?= 20000

# Tests tell how long each took; the test harness calls that unstable, so the test binaries, and they alone, are told that it may.
export CARGO_TARGET_$(shell echo '$(TARGET)' | tr a-z- A-Z_)_RUNNER := env RUSTC_BOOTSTRAP=1
TIMES := -Z unstable-options --report-time

.PHONY: help build release image release-image example-image install demo demo-agents language-agents demo-down trigger test test-quick test-all \
  check lints unit-tests models simulate explore mutants simulate-and-mutants test-apiserver test-crash test-pods test-again \
  test-gitops test-controllers test-versions crds clean try measure-dev

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## Build the binaries of the demo and the tests into target/bin
	cargo build --locked --bins
	@hack/binaries target/$(TARGET)/debug $(BIN)

release: ## Build the binaries to be published into target/bin: smaller and faster, and slow to build
	cargo build --locked --release --bins
	@hack/binaries target/$(TARGET)/release $(BIN)

image: release ## Build the image to be published, with docker where its engine runs, else with buildah
	@$(MAKE) --no-print-directory $(IMAGE_TAR)

# Anew only when a binary is another: then alone pods need to be replaced.
$(IMAGE_TAR): $(BIN)/lockstep $(BIN)/lockstep-shim Dockerfile hack/image
	@mkdir -p target/image
	@cp $(BIN)/lockstep $(BIN)/lockstep-shim target/image/
	@echo 'lockstep:x:65532:65532:lockstep:/:/sbin/nologin' > target/image/passwd
	@$(call build-image,$(IMAGE),target/image,$(IMAGE_TAR))

$(AGENTS_TAR): $(wildcard examples/product-discovery/agents/*) hack/image
	@examples/product-discovery/agents/build $(AGENTS_TAR)

$(LANGUAGES_TAR): $(wildcard examples/agents/*/*) examples/agents/build hack/image
	@examples/agents/build $(LANGUAGES_TAR)

example-image: $(AGENTS_TAR) $(LANGUAGES_TAR) ## Build the images of the example agents

install: build cluster ## Install the chart into the cluster, with binaries built here
	@$(MAKE) --no-print-directory $(IMAGE_TAR)
	@$(call load-image,$(IMAGE_TAR))
	@$(call in-cluster,hack/install $(VERSION) $(IMAGE_TAR))

demo-agents: $(AGENTS_TAR)
	@$(call load-image,$(AGENTS_TAR))

language-agents: $(LANGUAGES_TAR)
	@$(call load-image,$(LANGUAGES_TAR))

try: ## Show it without a cluster: a run of three steps with two gates on this machine (AUTO=1 approves by itself)
	cargo build --locked --bin kubectl-lockstep
	@mkdir -p $(BIN)
	@strip -o $(BIN)/.try target/$(TARGET)/debug/kubectl-lockstep && mv $(BIN)/.try $(BIN)/kubectl-lockstep
	@hack/try

measure-dev: ## How long 200 steps and 1,000 items take without a cluster, and how much memory
	cargo test --locked --test dev two_hundred -- --ignored --nocapture

demo: ## Show it: cluster, install, Discovery -> Epic Backlog -> Architecture with gates (AUTO=1 approves by itself)
	@hack/demo

demo-down: ## Take away what the demo made; the cluster too, if it is the embedded one
	@hack/demo --down

trigger: build demo-agents ## Publish an event to the running cluster, which starts a run there; ID=... says which event
	@$(call in-cluster,hack/trigger $(ID))

check: ## What needs no cluster: formatting, lints, house rules, unit tests, scenarios
	cargo fmt --check
	@# Side by side: each has long stretches in which one crate keeps one core. Lints have a folder of their own for that.
	@$(MAKE) --no-print-directory -j2 --output-sync=line lints unit-tests

lints:
	cargo clippy --locked --all-targets --target-dir target/clippy -- --deny warnings

unit-tests:
	cargo test --locked --no-fail-fast --lib --test house --test crds --test scenarios --test http --test evaluator --test operator --test shim --test dev -- $(TIMES)

models: ## Every state of small worlds: fence and claim, the lease
	cargo test --locked --test model -- $(TIMES)

simulate: ## SEEDS worlds (20000) of a mirror and some of the product in which everything goes wrong; a failing one prints its story
	LOCKSTEP_SEEDS=$(SEEDS) cargo test --locked --no-fail-fast --test simulation --test product -- $(TIMES) --nocapture

explore: ## New worlds for MINUTES (20), from a seed that is printed or given by SEED; what fails goes into tests/seeds.txt
	@seed=$${SEED:-$$(( $$(date +%s) * 1000 ))}; seconds=$$(( $${MINUTES:-20} * 30 )); \
	echo "worlds of the product and of its mirror from seed $$seed on, $$seconds s each (again: make explore SEED=$$seed)"; \
	LOCKSTEP_EXPLORE_SECONDS=$$seconds LOCKSTEP_FIRST_SEED=$$seed LOCKSTEP_PRODUCT_FIRST_SEED=$$seed \
	cargo test --locked --no-fail-fast --test simulation --test product whatever_happens -- $(TIMES) --nocapture

mutants: ## Deliberate bugs, one at a time: simulation or model must find each
	hack/mutants cargo test --locked --test mutants -- $(TIMES) --nocapture

# In one build: with the bugs compiled in and none switched on, the worlds are those of `simulate`.
simulate-and-mutants:
	LOCKSTEP_SEEDS=$(SEEDS) hack/mutants cargo test --locked --no-fail-fast --test simulation --test product --test mutants -- $(TIMES) --nocapture

# On the control plane that KUBECONFIG names.
test-apiserver:
	cargo test --locked --no-fail-fast --test apiserver -- $(TIMES)
test-crash:
	cargo test --locked --test crash a_crash -- $(TIMES) --nocapture
	@# After it: what is left of hostile runs would be met by the operator of the crash test.
	cargo test --locked --test crash a_hostile -- $(TIMES) --nocapture
test-pods:
	@# People and pages call the plugin by kubectl.
	PATH="$(CURDIR)/$(BIN):$$PATH" cargo test --locked --test e2e -- $(TIMES) --test-threads=4

# One test of one file once more, alone; hack/test asks for it.
test-again:
	PATH="$(CURDIR)/$(BIN):$$PATH" cargo test --locked --test '$(FILE)' -- $(TIMES) --test-threads=1 --exact '$(NAME)'

test-gitops: ## Flux and Argo CD themselves, from a Git repository, beside people and runs; without KUBECONFIG on a control plane of its own (25 minutes the first time)
	@hack/gitops/run

# Without nodes the operator of this build runs beside the cluster.
# GITOPS: which of its tests, by words of their names.
test-controllers:
	cargo test --locked --test gitops -- $(TIMES) --test-threads=1 --nocapture $(GITOPS)

test-versions: ## The chart and the API server tests with the API server of Kubernetes 1.33, 1.34 and 1.35
	hack/versions

test-quick: ## What needs no cluster, and some simulated worlds: under 3 minutes once everything was built
	@hack/test --quick

test: ## Everything, of the searches a fixed part: check, models, simulation, a real API server, real pods
	@hack/test

test-all: ## Everything, all of the searches, and clients and servers of others (more than an hour)
	@hack/test --all

crds: ## Write crds/, the chart's copies, docs/reference.md and docs/context.schema.json anew from the Rust types
	UPDATE=1 cargo test --quiet --test crds

clean: cluster-down ## Stop the embedded cluster and remove all that was built
	cargo clean
