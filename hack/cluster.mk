# The development cluster and the image build: included by the top-level Makefile.
#
#   CLUSTER=embedded   the cluster built here from Kubernetes' sources (default; see hack/devcluster/README.md)
#   CLUSTER=current    whatever the current kubectl context points to
#   CLUSTER=kind       a kind cluster named lockstep, where docker is
CLUSTER ?= embedded

DEVCLUSTER := hack/devcluster/devcluster
# The script reads the same variables from the environment, with the same defaults.
DEVCLUSTER_DIR ?= $(CURDIR)/target/devcluster/state
DEVCLUSTER_BIN ?= $(CURDIR)/target/devcluster/bin
DEVCLUSTER_PORT ?= 6443
export DEVCLUSTER_DIR DEVCLUSTER_BIN DEVCLUSTER_PORT
DEVCLUSTER_KUBECONFIG := $(DEVCLUSTER_DIR)/admin.kubeconfig

# $(call in-cluster,COMMAND): COMMAND with the chosen cluster selected, and our kubectl and helm found first.
# The embedded tools come first only with the embedded cluster: elsewhere the user's own are the right ones.
ifeq ($(CLUSTER),embedded)
in-cluster = KUBECONFIG='$(DEVCLUSTER_KUBECONFIG)' PATH='$(DEVCLUSTER_BIN)':"$$PATH" $(1)
# $(call load-image,IMAGE.tar): makes an archive from hack/image known to the cluster's node.
load-image = $(DEVCLUSTER) load $(1)
else ifeq ($(CLUSTER),kind)
in-cluster = $(1)
load-image = kind load image-archive --name lockstep $(1)
else ifeq ($(CLUSTER),current)
in-cluster = $(1)
# How images reach a cluster of the user's own, only the user knows: LOAD_IMAGE="k3s ctr images import", for example.
load-image = $(if $(LOAD_IMAGE),$(LOAD_IMAGE) $(1),echo "CLUSTER=current: push or load $(1) yourself, or set LOAD_IMAGE to a command that takes the archive")
else
$(error CLUSTER=$(CLUSTER): choose embedded, current or kind)
endif
# $(call build-image,NAME:TAG,CONTEXT_DIR,OUT.tar[,MORE ARGUMENTS])
build-image = hack/image $(1) $(2) $(3) $(4)

.PHONY: packages cluster cluster-build cluster-down cluster-status

packages: ## Install the Debian packages that the embedded cluster and the image build need (root)
	hack/packages

cluster-build: ## Build the embedded cluster's binary (first time: about 5 minutes on 2 cores)
	@$(DEVCLUSTER) build

ifeq ($(CLUSTER),embedded)
cluster: ## Start a development cluster, or find it running (CLUSTER=embedded|current|kind)
	@$(DEVCLUSTER) up

cluster-down: ## Stop the development cluster and remove all it made
	@$(DEVCLUSTER) down

cluster-status: ## Show what of the development cluster runs
	@$(DEVCLUSTER) status
else ifeq ($(CLUSTER),kind)
cluster:
	@command -v kind >/dev/null || { echo "CLUSTER=kind: kind is missing; install it, or use CLUSTER=embedded" >&2; exit 1; }
	@docker info >/dev/null 2>&1 || { echo "CLUSTER=kind: no docker engine answers; start docker, or use CLUSTER=embedded" >&2; exit 1; }
	@kind get clusters 2>/dev/null | grep -qx lockstep || kind create cluster --name lockstep --wait 120s
	@kubectl config use-context kind-lockstep

cluster-down:
	@kind delete cluster --name lockstep

cluster-status:
	@kubectl --context kind-lockstep get nodes
else
cluster cluster-status:
	@command -v kubectl >/dev/null || { echo "CLUSTER=current: kubectl is missing; install it, or use CLUSTER=embedded" >&2; exit 1; }
	@context=$$(kubectl config current-context 2>/dev/null) || { echo "CLUSTER=current: no current kubectl context; set one, or use CLUSTER=embedded" >&2; exit 1; }; \
	kubectl get --raw /readyz --request-timeout=10s >/dev/null || { echo "CLUSTER=current: the cluster of context $$context does not answer" >&2; exit 1; }; \
	echo "using the cluster of context $$context"

cluster-down:
	@echo "CLUSTER=current: not made by this project, left alone"
endif
