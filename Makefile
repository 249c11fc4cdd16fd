# Everything a developer or CI runs. `make` lists it.

SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# Outside the tree, so that a fresh clone finds RocksDB already built.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/godwit/target
# Where rustup installs, for shells that do not have it in PATH.
export PATH := $(PATH):$(HOME)/.cargo/bin

# Arguments for the demo: make demo ARGS=--help
ARGS ?=

# How many seeds for the simulator, and the first one: make soak SEEDS=10000 FROM=1
SEEDS ?= 10000
FROM ?= 1
# Patches to try, of sim/broken; all if empty.
PATCHES ?=

# Parts of the benchmark of links; all if empty.
PARTS ?=

.PHONY: help setup demo test soak broken lint bench bench-documents bench-links

help:
	@echo 'make demo   build Godwit and run its demo (ARGS="..." are passed on)'
	@echo 'make test   run every test, as CI does'
	@echo 'make broken break Godwit in many ways, one at a time: the simulator must notice (PATCHES="names")'
	@echo 'make lint   check formatting, lints and dependencies, as CI does'
	@echo 'make bench  measure the ratios of docs/BENCHMARKS.md with a release build'
	@echo 'make bench-documents  measure what documents cost'
	@echo 'make bench-links  measure what replication and repair cost (PARTS="names")'
	@echo 'make soak   run SEEDS=10000 seeds of the simulator from FROM=1, on all cores'
	@echo 'make setup  install what a build needs and this machine lacks'

setup:
	@bash .ci/setup

# The demo and the tests share one profile (dev), so that RocksDB is compiled once.
demo: setup
	cargo run --locked -p godwit-server --bin godwit -- demo $(ARGS)

test:
	@bash .ci/setup tests
	cargo test --workspace --locked --lib --bins --tests
	@sim/broken/run --sample

broken: setup
	@sim/broken/run $(PATCHES)

lint: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@if cargo deny --version >/dev/null 2>&1; then \
		cargo deny --offline --locked check --hide-inclusion-graph bans licenses sources; \
	else \
		echo 'cargo-deny is not installed: bans, licenses and sources not checked (cargo install cargo-deny --locked)'; \
	fi

# A profile of its own: the first run compiles RocksDB once more.
bench: setup
	cargo bench --workspace --locked --bench ratios

# PARTS: the names of some of its parts; all if empty.
bench-links: setup
	cargo bench --workspace --locked --bench links -- $(PARTS)

bench-documents: setup
	cargo bench --workspace --locked --bench documents

# For release, of the simulator and the pure crates only: RocksDB is not compiled.
soak:
	cargo run --release --locked -p godwit-sim -- run --seeds $(SEEDS) --from $(FROM) --jobs $$(nproc)
