# `make` lists the targets. Everything is set up on first use: Debian packages that are missing, virtual
# environments in .venv and .cache, crates in target.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# rust-toolchain.toml names a version. Where rustup has it only as its `stable`, and may not install, that one does.
ifneq ($(shell cargo --version >/dev/null 2>&1 && echo yes),yes)
export RUSTUP_TOOLCHAIN := stable
endif

ENVS := .cache/envs
BIN := .venv/bin
UV := .venv/bin/uv
WHEELS := target/wheels
CRATES := $(shell sed -n 's/^members = \[\(.*\)\]/\1/p' Cargo.toml | tr -d '",')
# The binding is a library that only an interpreter can load; pytest tests it.
RUST_TESTED := --workspace --exclude vineyard-python --features vineyard-charge/control,vineyard-csi/failpoints
PANDAS := pandas2 pandas3
# Static without another C library: the target has to be named, or build scripts would be static too.
STATIC := $(shell $(if $(RUSTUP_TOOLCHAIN),RUSTUP_TOOLCHAIN=$(RUSTUP_TOOLCHAIN)) rustc -vV | sed -n 's/^host: //p')
PYTHON_SOURCES = $(wildcard python bench demo .ci manifests tests/web)
CHART := manifests/vineyard
# How the binaries of images are built; PROFILE=dev is sooner done.
PROFILE := release
STATIC_FLAGS := CARGO_TARGET_$(subst -,_,$(shell tr a-z A-Z <<<$(STATIC)))_RUSTFLAGS="-C target-feature=+crt-static"
# All of it in one selection, so that what they share is built once.
FOR_KUBERNETES := -p vineyard -p vineyard-csi -p vineyard-sidecar --features vineyard/kubernetes,vineyard-csi/kubernetes --target $(STATIC)
# The same for tests. What they need besides gives dependencies more features, unless no test is built; so one always is.
TESTED_FOR_KUBERNETES := -p vineyard-tests $(FOR_KUBERNETES)
BUILD_FOR_KUBERNETES = $(STATIC_FLAGS) cargo build --locked --profile $(PROFILE) \
	$(if $(filter test,$(PROFILE)),$(TESTED_FOR_KUBERNETES) --test clone,$(FOR_KUBERNETES))
TEST_FOR_KUBERNETES = $(STATIC_FLAGS) cargo test --locked $(TESTED_FOR_KUBERNETES) --bin vineyard-csi
STATIC_OUT = target/$(STATIC)/$(if $(filter release,$(PROFILE)),release,debug)
IMAGE = $(BIN)/python -B manifests/images/build.py
NAMES := docker.io/vineyardcsi/
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)

.PHONY: help
help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---------------------------------------------------------------------------------------------- set-up

.PHONY: setup
setup: $(BIN)/.ready $(PANDAS:%=$(ENVS)/%/.ready) ## Installs everything that the other targets need
	cargo fetch --locked

$(UV):
	.ci/apt
	python3 -m venv .venv
	.venv/bin/pip install --quiet uv==0.13.9

$(BIN)/.ready: .ci/tools.txt | $(UV)
	$(UV) pip install --quiet --python $(BIN)/python -r .ci/tools.txt
	touch $@

$(ENVS)/%/.ready: python/tests/requirements-%.txt | $(UV)
	$(UV) venv --quiet --clear --no-python-downloads --python $(BIN)/python $(ENVS)/$*
	$(UV) pip install --quiet --python $(ENVS)/$*/bin/python -r $<
	touch $@

$(ENVS)/web/.ready: tests/web/requirements.txt | $(UV)
	$(UV) venv --quiet --clear --no-python-downloads --python $(BIN)/python $(ENVS)/web
	$(UV) pip install --quiet --python $(ENVS)/web/bin/python -r $<
	touch $@

# ------------------------------------------------------------------------------------------------ build

.PHONY: build
build: ## Builds the command line, the driver and the static sidecar, optimised
	cargo build --locked --release -p vineyard
	cargo build --locked --release -p vineyard-csi --bins --example kubelet
	$(STATIC_FLAGS) cargo build --locked --release -p vineyard-sidecar --target $(STATIC)
	strip --strip-debug target/release/vineyard target/$(STATIC)/release/vineyard-sidecar

.PHONY: binaries
binaries: ## Builds the static driver and sidecar that the images have
	$(BUILD_FOR_KUBERNETES) --bin vineyard-csi --bin vineyard-sidecar
	strip --strip-debug $(STATIC_OUT)/vineyard-csi $(STATIC_OUT)/vineyard-sidecar

# Apart from `build`: Kubernetes' client takes as long to compile as everything else.
.PHONY: plugin
plugin: ## Builds kubectl-vineyard, static
	$(BUILD_FOR_KUBERNETES) --bin vineyard
	strip --strip-debug $(STATIC_OUT)/vineyard
	ln -f $(STATIC_OUT)/vineyard $(STATIC_OUT)/kubectl-vineyard

.PHONY: images
images: binaries $(BIN)/.ready ## Builds the images of driver and sidecar as archives, without an engine
	$(IMAGE) manifests/images/Dockerfile --from build=$(STATIC_OUT) \
		--out .cache/images $(foreach name,node controller retainer sidecar,--name $(name)=$(NAMES)$(name):$(VERSION))

.PHONY: wheel
wheel: $(BIN)/.ready ## Builds the Python wheel into target/wheels
	rm -rf $(WHEELS)
	$(BIN)/maturin build --quiet --locked --release --manifest-path python/Cargo.toml --out $(WHEELS)
	@ls $(WHEELS)

# ------------------------------------------------------------------------------------------------ check

.PHONY: lint
lint: lint-house deny lint-rust lint-python ## Checks format, lints, types, layers and house rules

.PHONY: lint-house
lint-house: $(BIN)/.ready
	python3 .ci/tree.py
	python3 .ci/layers.py
	python3 .ci/links.py
	for script in .ci/run .ci/apt .ci/pythons .ci/wheel-test tests/sanity/run tests/cluster/images/make tests/cluster/run \
		tests/cluster/beside tests/cluster/missing tests/cluster/on-one tests/soak/run tests/vm/run \
		tests/vm/kernel tests/vm/test; do bash -n "$$script"; done
	$(BIN)/typos

# Alone and together, because a crate that only builds with its neighbours' features is broken.
.PHONY: lint-rust
lint-rust:
	cargo fmt --all --check
	for crate in $(CRATES); do \
		cargo clippy --locked --quiet --manifest-path "$$crate/Cargo.toml" --all-targets -- -D warnings; \
	done
	cargo clippy --locked --quiet --workspace --all-targets --all-features -- -D warnings
	@# What a release is compiled like must refuse to have fail points.
	said=$$(rustc --edition 2024 --crate-type lib --emit metadata -o /dev/null -C debug-assertions=off \
		--cfg 'feature="failpoints"' csi-driver/src/failpoint.rs 2>&1 || true); \
		grep -q 'a release has no fail points' <<<"$$said"
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --quiet --workspace --no-deps --document-private-items

.PHONY: lint-python
lint-python: $(BIN)/.ready $(ENVS)/pandas3/.ready
	$(BIN)/ruff check $(PYTHON_SOURCES)
	$(BIN)/ruff format --check $(PYTHON_SOURCES)
	$(BIN)/mypy
	cd python && ../$(BIN)/mypy --cache-dir ../.cache/mypy --python-executable ../$(ENVS)/pandas3/bin/python

.PHONY: fmt
fmt: $(BIN)/.ready ## Formats Rust and Python
	cargo fmt --all
	$(BIN)/ruff check --fix $(PYTHON_SOURCES)
	$(BIN)/ruff format $(PYTHON_SOURCES)

.PHONY: test
test: $(BIN)/.ready ## Runs every check and test, in three quarters of an hour the first time; CLUSTER=0: none on a real Kubernetes
	$(if $(filter 0,$(CLUSTER)),,+tests/cluster/beside) $(MAKE) --no-print-directory test-all $(if $(filter 0,$(CLUSTER)),,test-cluster)
	@echo "make test: everything passed"

.PHONY: test-all
test-all: lint test-rust test-python test-wheel test-bench sanity test-chart test-kubernetes

.PHONY: test-rust
test-rust: ## Runs the Rust tests
	cargo test --locked $(RUST_TESTED)

.PHONY: test-kubernetes
test-kubernetes: ## Runs the driver's tests with what it has for Kubernetes, built as the images have it
	$(TEST_FOR_KUBERNETES)

.PHONY: test-cluster
test-cluster: ## Runs the tests on two real clusters of their own, and removes them (needs Go and root)
	tests/cluster/run

.PHONY: test-python
test-python: wheel $(PANDAS:%=$(ENVS)/%/.ready) ## Runs the Python tests, with pandas 2 and with pandas 3
	for env in $(PANDAS); do \
		echo "== python tests, $$env"; \
		$(UV) pip install --quiet --no-deps --reinstall --python $(ENVS)/$$env/bin/python $(WHEELS)/*.whl; \
		$(ENVS)/$$env/bin/pytest -p no:cacheprovider -q --durations=5 python/tests; \
	done

.PHONY: test-wheel
test-wheel: wheel ## Installs the wheel into fresh environments and runs the README's snippet
	.ci/wheel-test $(WHEELS)/*.whl

.PHONY: test-bench
test-bench: wheel ## Runs the benchmark's smoke test: tiny sizes, this store and plain files only
	bench/run --quick --only ours,files --workload small,clients8,large,create,build,fresh,frame,nested,list,strings

.PHONY: test-web
test-web: $(ENVS)/web/.ready ## Drives the controller's web page in a headless browser (needs root); fetches Chromium on first use
	.ci/apt web
	cargo build --locked --profile test -p vineyard-csi --bins --example kubelet
	$(ENVS)/web/bin/pytest -p no:cacheprovider -q tests/web

SANITY := .cache/bin/csi-sanity

$(SANITY): tests/sanity/go.mod tests/sanity/go.sum
	cd tests/sanity && CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o ../../$@ \
		github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity
	touch $@

ifeq ($(shell command -v go),)
.PHONY: sanity
sanity:
	@echo "sanity: skipped, csi-sanity is built with Go 1.25 or newer"
else
# The driver that the tests use: after them, there is nothing to be built.
.PHONY: sanity
sanity: $(SANITY) ## Runs csi-sanity against the standalone driver, as often as ROUNDS says (needs Go and root)
	cargo test --locked $(RUST_TESTED) --no-run
	tests/sanity/run target/debug/vineyard-csi $(SANITY) $(or $(ROUNDS),1)
endif

.PHONY: soak
soak: ## Runs the long property and fault tests: all, or SOAK="model races …"
	tests/soak/run $(SOAK)

.PHONY: test-cleanup
test-cleanup: ## Removes what killed test runs have left
	cargo run --quiet --locked --profile test -p vineyard-tests --bin vineyard-test-cleanup

.PHONY: vm-test
vm-test: ## Runs what depends on the kernel in virtual machines: cgroup version 2, Linux 6.1 and newer (slow, needs root)
	RUST_TESTED="$(RUST_TESTED)" tests/vm/test $(KERNELS)

# Not the advisories: their database is no package, so a build would depend on one more host.
.PHONY: deny
deny: $(BIN)/.ready ## Checks licences, sources and versions of the dependencies
	$(BIN)/cargo-deny --locked --log-level error check bans licenses sources

# ------------------------------------------------------------------------------- the cluster under test

ID := dev
N := 2
# Locked, because `make test` begins with them beside everything else.
GO_BUILD = CGO_ENABLED=0 flock $(CURDIR)/.cache/go.lock go build -trimpath -o $(CURDIR)/$@
KUBERNETES = $(shell sed -n 's/.*k8s.io\/kubernetes v//p' tests/cluster/kube/go.mod)
# As the tests build it: after them, there is nothing to be built.
TEST_CLUSTER := target/debug/vineyard-test-cluster
# Where the tables of a run go.
PAGES := docs
# Which tests: parts of their names.
TESTS :=
# Set: what the cluster runs is built already.
PREBUILT :=
CLUSTER_PROGRAMS := $(addprefix .cache/bin/,helm etcd csi-provisioner csi-resizer kubernetes)

# The build cache of Go makes all but the first build a matter of seconds.
$(CLUSTER_PROGRAMS): | .cache
.cache:
	mkdir -p $@

.cache/bin/etcd: tests/cluster/etcd/go.sum tests/cluster/etcd/main.go
	cd tests/cluster/etcd && $(GO_BUILD) -ldflags "-s -w" .
	touch $@

.cache/bin/kubernetes: tests/cluster/kube/go.sum tests/cluster/kube/main.go
	cd tests/cluster/kube && $(GO_BUILD) -ldflags "-s -w $(foreach each,gitVersion=v$(KUBERNETES) \
		gitMajor=$(word 1,$(subst ., ,$(KUBERNETES))) gitMinor=$(word 2,$(subst ., ,$(KUBERNETES))),\
		-X k8s.io/component-base/version.$(each))" .
	touch $@

.cache/bin/csi-provisioner: tests/cluster/csi/go.sum
	cd tests/cluster/csi && $(GO_BUILD) -ldflags "-s -w" github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner
	touch $@

.cache/bin/csi-resizer: tests/cluster/csi/go.sum
	cd tests/cluster/csi && $(GO_BUILD) -ldflags "-s -w" github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer
	touch $@

.cache/bin/helm: tests/cluster/helm/go.sum
	cd tests/cluster/helm && $(GO_BUILD) -ldflags "-s -w" helm.sh/helm/v4/cmd/helm
	touch $@

.PHONY: cluster-programs
cluster-programs: $(CLUSTER_PROGRAMS)
	.ci/apt cluster

.PHONY: cluster-tool
cluster-tool:
	cargo test --locked $(RUST_TESTED) --test cluster --no-run

.PHONY: cluster-images
cluster-images: images cluster-programs wheel
	$(if $(filter test,$(PROFILE)),$(BUILD_FOR_KUBERNETES),$(STATIC_FLAGS) cargo build --locked --profile $(PROFILE) -p vineyard-tests --target $(STATIC)) \
		--bin vineyard-test-client
	tests/cluster/images/make .cache/images-of-tests .cache/bin $(STATIC_OUT)/vineyard-test-client $(WHEELS)/*.whl
	$(IMAGE) tests/cluster/images/Dockerfile --from build=.cache/images-of-tests --out .cache/images \
		--name pause=vineyard.test/pause:1 --name shell=vineyard.test/shell:1 --name python=vineyard.test/python:1 \
		--name csi-provisioner=registry.k8s.io/sig-storage/csi-provisioner:v$(call module,external-provisioner/v6) \
		--name csi-resizer=registry.k8s.io/sig-storage/csi-resizer:v$(call module,external-resizer/v2)
module = $(shell sed -n 's|.*kubernetes-csi/$(1) v\([0-9.]*\) .*|\1|p' tests/cluster/csi/go.mod)

.PHONY: definitions
definitions: ## Writes the definitions of the custom resources into the chart
	cargo run --quiet --locked -p vineyard-csi --features kubernetes -- definitions >manifests/vineyard/files/definitions.yaml

# As the cluster under test has it.
.PHONY: manifests
manifests: .cache/bin/helm ## Renders the chart into manifests/vineyard.yaml
	{ echo "# Made from the chart in manifests/vineyard by \`make manifests\`; do not edit."; \
		.cache/bin/helm template vineyard $(CHART) --namespace vineyard-system --no-hooks --set namespace.create=true \
			--api-versions admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy; } >manifests/vineyard.yaml

ifeq ($(shell command -v go),)
.PHONY: test-chart
test-chart:
	@echo "test-chart: skipped, Helm is built with Go 1.26 or newer"
else
.PHONY: test-chart
test-chart: .cache/bin/helm $(BIN)/.ready ## Lints and renders the chart in several ways, and looks at what comes out
	$(BIN)/pytest -p no:cacheprovider -q manifests/tests
endif

.PHONY: cluster-up
cluster-up: $(if $(PREBUILT),,cluster-tool cluster-programs cluster-images) ## Starts a real Kubernetes of N nodes (2), named ID (dev); needs Go and root
	$(TEST_CLUSTER) up --id $(ID) --nodes $(N) --programs .cache/bin --images .cache/images

.PHONY: cluster-install
cluster-install: cluster-up ## Installs the driver on the cluster ID, or what has changed of it
	$(TEST_CLUSTER) exec --id $(ID) -- helm upgrade --install vineyard manifests/vineyard --namespace vineyard-system \
		--create-namespace --values tests/cluster/values.yaml --wait=legacy --timeout 3m

.PHONY: cluster-test
cluster-test: cluster-install $(if $(PREBUILT),,plugin) ## Tests the driver on the cluster ID; TESTS: some
	VINEYARD_TEST_CLUSTER=$(ID) VINEYARD_CLUSTER_PAGES=$(abspath $(PAGES)) \
		cargo test --locked $(RUST_TESTED) --test cluster -- --ignored --test-threads=1 --skip latency:: --skip soak_ --skip uninstall:: $(TESTS)
	$(if $(TESTS),,$(CHART_TESTS))

.PHONY: cluster-chart
cluster-chart: $(BIN)/.ready ## Tests the chart on the cluster ID, where it is installed; `make cluster-test` does, too, unless it has TESTS
	$(CHART_TESTS)
CHART_TESTS = VINEYARD_TEST_CLUSTER=$(ID) $(BIN)/pytest -p no:cacheprovider -q manifests/tests/test_on_a_cluster.py

.PHONY: cluster-uninstall
cluster-uninstall: cluster-tool ## Uninstalls the driver from the cluster ID, and looks for what it left
	VINEYARD_TEST_CLUSTER=$(ID) cargo test --locked $(RUST_TESTED) --test cluster -- --ignored uninstall::

.PHONY: cluster-soak
cluster-soak: cluster-tool ## Kills whoever may be killed in every step, on the cluster ID, where `make cluster-install` was before; `make soak` does, too
	VINEYARD_TEST_CLUSTER=$(ID) VINEYARD_CLUSTER_PAGES=$(abspath $(PAGES)) \
		cargo test --locked $(RUST_TESTED) --test cluster -- --ignored --test-threads=1 soak_

.PHONY: cluster-bench
cluster-bench: ## Measures how long pods take to start on the cluster ID, where `make cluster-test` was before
	VINEYARD_TEST_CLUSTER=$(ID) VINEYARD_CLUSTER_PAGES=$(abspath $(PAGES)) \
		cargo test --locked $(RUST_TESTED) --test cluster -- --ignored latency::

.PHONY: cluster-conformance
cluster-conformance: cluster-tool ## Runs the catalog's conformance suite against the API server of the cluster ID
	$(TEST_FOR_KUBERNETES) --no-run
	$(TEST_CLUSTER) exec --id $(ID) -- env $(TEST_FOR_KUBERNETES) --offline kubernetes -- --ignored

.PHONY: cluster-down
cluster-down: cluster-tool ## Removes the cluster ID (dev) and everything that it left
	$(TEST_CLUSTER) down --id $(ID)

# ------------------------------------------------------------------------------------------ show, tidy

.PHONY: bench
bench: build wheel ## Measures this store against its peers, all in one run
	bench/run $(BENCH)

.PHONY: bench-driver
bench-driver: ## Measures calls of the driver and its hand-over against the bare system calls (needs root)
	cargo build --locked --release -p vineyard-sidecar
	cargo bench --locked -p vineyard-csi --bench driver -- $(CURDIR)/docs/benchmarks-driver.md

# Its project and packages, on the Python of the cluster under test.
DEMO_IMAGE := .cache/images-of-tests/demo

.PHONY: demo-image
demo-image: plugin cluster-images
	rm -rf $(DEMO_IMAGE)
	$(UV) pip install --quiet --no-python-downloads --python python3.11 --target $(DEMO_IMAGE)/packages --no-deps -r demo/image/requirements.txt
	find $(DEMO_IMAGE)/packages \( -name RECORD -o -name direct_url.json -o -name uv_cache.json -o -name .lock \) -delete
	rm -rf $(DEMO_IMAGE)/packages/bin
	cp -r demo/pipeline $(DEMO_IMAGE)/project
	$(IMAGE) demo/image/Dockerfile --from build=.cache/images-of-tests --out .cache/images-of-demo --name flights=vineyard.test/flights:1

.PHONY: demo
ifeq ($(CLUSTER),1)
demo: $(if $(shell command -v go),,$(error a cluster is built with Go 1.26 or newer, which is not here)) cluster-tool demo-image
	demo/run --cluster demo $(if $(KEEP),--keep)
else
demo: build wheel ## Runs a real Kedro pipeline through the store and shows times and bills; CLUSTER=1: on a real Kubernetes
	demo/run
endif

.PHONY: clean
clean: ## Removes everything that the other targets made
	cargo clean --quiet
	rm -rf .venv .cache
