# make demo    install into .venv and segment the lobes of a phantom CT
# make test    install into .venv, lint, check the bundles, run all tests
# make lint    ruff, mypy and the check of the bundles
# make label   MONAI Label with the bundles, for 3D Slicer: make label STUDIES=DIR
# make federated   the bundles' federated learning in NVFlare's simulator, write docs/federated
# make bench   measure speed and memory, write docs/benchmarks
# make bench-scale   the same of volumes larger than memory; an hour, some tens of GB in the temporary folder
# make lock    write requirements.lock, versions and hashes of all packages, from requirements.txt
# make audit   look up known vulnerabilities of the locked packages; needs the network
# make results train on phantoms and evaluate, write the results that the texts quote

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUDIES ?= studies
DEMO := bundles/pdvnet_lung/output/demo
RUNTIME := tests/volseg/runtime
VNET := tests/bundles/vnet_prostate

.PHONY: demo test test_bundles test_packages lint label federated bench bench-scale lock audit results install

demo: install
	$(BIN)/python -m monai.bundle run --config_file bundles/pdvnet_lung/configs/inference.json --output_dir $(DEMO)
	@echo
	@echo "The lobes of a phantom CT were segmented. Look at"
	@ls $(DEMO)/* | sed 's/^/    /'

test: lint
	$(MAKE) -j 2 test_bundles test_packages

# Two processes for two cores: when a worker of pytest-xdist dies, the others may wait for ever. With V-Net's own tests
# in the second, both take about as long.
# The engines of the runtime have processes of their own: after hundreds of other tests, torch.compile ended with a
# segmentation fault.
test_bundles: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/bundles --ignore $(VNET)

test_packages: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/volseg tests/tools tests/label $(VNET) --ignore $(RUNTIME)
	set -e; for file in $(RUNTIME)/test_*.py; do OMP_NUM_THREADS=1 $(BIN)/python -m pytest $$file; done

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m tools check

label: install
	$(BIN)/python -m tools label --studies "$(STUDIES)"

federated: install
	$(BIN)/python -m tools federated pdvnet_lung
	$(BIN)/python -m tools federated vnet_prostate
	$(BIN)/python -m tools federated resunet_mitoem

bench: install
	$(BIN)/python -m tools bench

bench-scale: install
	$(BIN)/python -m tools bench blockwise_decoding blockwise_prediction
	$(BIN)/python -m tools.bench.tables

# What the lock has already stays, unless requirements.txt says otherwise; delete the lock to update everything.
lock: install
	$(BIN)/uv pip compile requirements.txt --universal --python-version 3.11 --generate-hashes \
		--no-emit-package torch --no-emit-package pip --custom-compile-command "make lock" --quiet --output-file requirements.lock

audit: install
	$(BIN)/python -m tools audit

results: install
	$(BIN)/python -m tools results pdvnet_lung
	$(BIN)/python -m tools results vnet_prostate
	$(BIN)/python -m tools results vnet_prostate --overlay train_practical
	$(BIN)/python -m tools results resunet_mitoem
	$(BIN)/python -m tools results resunet_mitoem --overlay train_second_stage
	$(BIN)/python -m tools results resunet_mitoem --overlay train_h
	$(BIN)/python -m monai.bundle run --config_file bundles/resunet_mitoem/configs/train_interpolation.json
	$(BIN)/python -m tools restoration

install: $(VENV)/installed

# Without dependencies, for the lock lists them all. torch comes in the build for the machine, so without a hash and with
# the libraries that a build for GPUs needs.
$(VENV)/installed: requirements.lock requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@
