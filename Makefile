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
SEEDS ?= 20000

# Tests tell how long each took; the test harness calls that unstable, so the test binaries, and they alone, are told that it may.
export CARGO_TARGET_$(shell echo '$(TARGET)' | tr a-z- A-Z_)_RUNNER := env RUSTC_BOOTSTRAP=1
TIMES := -Z unstable-options --report-time

.PHONY: help build release image release-image example-image install demo demo-agents demo-down test test-quick test-all \
  check models simulate mutants simulate-and-mutants test-apiserver test-crash test-pods crds clean

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

example-image: $(AGENTS_TAR) ## Build the image of the example agents

install: build cluster ## Install the chart into the cluster, with binaries built here
	@$(MAKE) --no-print-directory $(IMAGE_TAR)
	@$(call load-image,$(IMAGE_TAR))
	@$(call in-cluster,hack/install $(VERSION) $(IMAGE_TAR))

demo-agents: $(AGENTS_TAR)
	@$(call load-image,$(AGENTS_TAR))

demo: ## Show it: cluster, install, Discovery -> Epic Backlog -> Architecture with gates (AUTO=1 approves by itself)
	@hack/demo

demo-down: ## Take away what the demo made; the cluster too, if it is the embedded one
	@hack/demo --down

check: ## What needs no cluster: formatting, lints, house rules, unit tests, scenarios
	cargo fmt --check
	cargo clippy --locked --all-targets -- --deny warnings
	cargo test --locked --lib --bins --test house --test crds --test scenarios --test evaluator --test operator -- $(TIMES)

models: ## Every state of small worlds: fence and claim, the lease
	cargo test --locked --test model -- $(TIMES)

simulate: ## SEEDS worlds (20000) of a mirror and some of the product in which everything goes wrong; a failing one prints its story
	LOCKSTEP_SEEDS=$(SEEDS) cargo test --locked --test simulation --test product -- $(TIMES) --nocapture

mutants: ## Deliberate bugs, one at a time: simulation or model must find each
	cargo test --locked --features mutants --test mutants -- $(TIMES) --nocapture

# In one build: with the bugs compiled in and none switched on, the worlds are those of `simulate`.
simulate-and-mutants:
	LOCKSTEP_SEEDS=$(SEEDS) cargo test --locked --features mutants --test simulation --test product --test mutants -- $(TIMES) --nocapture

# On the control plane that KUBECONFIG names.
test-apiserver:
	cargo test --locked --no-fail-fast --test apiserver -- $(TIMES)
test-crash:
	cargo test --locked --test crash a_crash -- $(TIMES) --nocapture
	@# After it: what is left of hostile runs would be met by the operator of the crash test.
	cargo test --locked --test crash a_hostile -- $(TIMES) --nocapture
test-pods:
	cargo test --locked --test e2e -- $(TIMES) --test-threads=4

test-quick: ## What needs no cluster, and some simulated worlds: under 3 minutes once everything was built
	@hack/test --quick

test: ## Everything, of the longest parts a share that the commit chooses: check, models, simulation, a real API server, real pods
	@hack/test

test-all: ## Everything, all shares (more than an hour)
	@hack/test --all

crds: ## Write crds/ and the chart's copies anew from the Rust types
	UPDATE=1 cargo test --quiet --test crds

clean: cluster-down ## Stop the embedded cluster and remove all that was built
	cargo clean
