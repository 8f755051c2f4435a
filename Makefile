# make help lists what there is. CLUSTER=embedded|current|kind chooses the cluster (see hack/cluster.mk).
.DEFAULT_GOAL := help
SHELL := /bin/bash
include hack/cluster.mk

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
# Static, so that the image needs nothing else. Static linking wants the target named.
TARGET := x86_64-unknown-linux-gnu
BINARIES := target/$(TARGET)/release
SEEDS ?= 20000
IMAGE := lockstep:$(VERSION)
IMAGE_TAR := target/lockstep-image.tar
AGENTS_TAR := target/example-agents.tar

.PHONY: help build image example-image install demo demo-agents demo-down test check models simulate mutants crds clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## Build the static binaries (first time: about 4 minutes on 2 cores)
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target $(TARGET) --bins

image: build ## Build the image, with docker where its engine runs, else with buildah
	@mkdir -p target/image
	@cp $(BINARIES)/lockstep $(BINARIES)/lockstep-shim target/image/
	@echo 'lockstep:x:65532:65532:lockstep:/:/sbin/nologin' > target/image/passwd
	@$(call build-image,$(IMAGE),target/image,$(IMAGE_TAR))

example-image: ## Build the image of the example agents
	@examples/product-discovery/agents/build $(AGENTS_TAR)

install: image cluster ## Install the chart into the cluster, with the image built here
	@$(call load-image,$(IMAGE_TAR))
	@$(call in-cluster,hack/install $(VERSION))

demo-agents: example-image
	@$(call load-image,$(AGENTS_TAR))

demo: ## Show it: cluster, install, Discovery -> Epic Backlog -> Architecture with gates (AUTO=1 approves by itself)
	@hack/demo

demo-down: ## Take away what the demo made; the cluster too, if it is the embedded one
	@hack/demo --down

check: ## What needs no cluster: formatting, lints, house rules, unit tests, scenarios
	cargo fmt --check
	cargo clippy --locked --all-targets -- --deny warnings
	cargo test --locked --lib --bins --test house --test crds --test scenarios --test evaluator

models: ## Every state of small worlds: fence and claim, the lease (about 2 minutes)
	cargo test --locked --test model

simulate: ## SEEDS worlds (20000) in which everything goes wrong; a failing one prints its story. 
	LOCKSTEP_SEEDS=$(SEEDS) cargo test --locked --profile simulate --test simulation -- --nocapture

mutants: ## Deliberate bugs, one at a time: simulation or model must find each
	cargo test --locked --profile simulate --features mutants --test mutants -- --nocapture

test: ## Everything: check, then the chart, a real API server, and real pods
	@hack/test

crds: ## Write crds/ and the chart's copies anew from the Rust types
	UPDATE=1 cargo test --quiet --test crds

clean: cluster-down ## Stop the embedded cluster and remove all that was built
	cargo clean
