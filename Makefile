# Each target does its own set-up: a virtual environment in .venv, pinned by constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Python compiles a module when it is first imported: most of those that are installed never are. What
# it compiles it must keep, whatever the environment says: tests start hundreds of processes.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
NATIVE := CMakeLists.txt $(wildcard cmake/*.cmake mest_fed/kernels/native/* mest_fed/runtime/native/*)

NO_NATIVE := No native kernels: the C++ build failed. 'make native' shows why.

# The self-test, configured, built and run: $(call SELFTEST,FOLDER,OPTIONS)
SELFTEST = $(BIN)/cmake -S . -B $(1) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
	-DMEST_SELFTEST=ON $(2) && $(BIN)/cmake --build $(1) && \
	$(BIN)/ctest --test-dir $(1) --output-on-failure
# The tests of the programs in C, with those of a build: $(call C_PROGRAMS,FOLDER). MEST_C_ALIKE=0 if they
# are compiled otherwise than the package, MEST_C_EMULATOR to run them by.
C_PROGRAMS = MEST_C_BUILD=$(abspath $(1)) $(BIN)/python -m pytest tests/clients/test_c_files.py \
	tests/clients/test_c_train.py
ARM_CC := aarch64-linux-gnu-gcc
ARM_CXX := aarch64-linux-gnu-g++
QEMU := $(firstword $(foreach name,qemu-aarch64 qemu-aarch64-static,$(shell command -v $(name))))
ARM_TOOLS := test-arm: skipped, for want of $(ARM_CXX) or qemu-aarch64 (Debian: \
	g++-aarch64-linux-gnu, qemu-user)

.DEFAULT_GOAL := help
.PHONY: help native simulate study study-smoke test test-soak test-quick test-flwr-next test-native test-sets test-sanitize test-races test-arm proto docs lint format clean

help: ## Show what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 16

$(READY): pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python .ci/requirements.py > $(VENV)/build.txt
	$(BIN)/python .ci/requirements.py dev > $(VENV)/dev.txt
	$(PIP) --requirement $(VENV)/build.txt cmake ninja
	# The package compiles while pip fetches what else it needs.
	$(PIP) --no-deps --no-build-isolation --editable . & \
	$(PIP) "torch==2.13.0" && $(PIP) --requirement $(VENV)/dev.txt; \
	fetched=$$?; wait $$! && exit $$fetched
	@$(BIN)/python -c "import mest_fed.kernels._native" 2>/dev/null || echo "$(NO_NATIVE)"
	touch $@

native: $(READY) ## Build the native kernels again, and fail if the compiler does
	MEST_REQUIRE_NATIVE=1 $(PIP) --no-deps --no-build-isolation --editable .

simulate: $(READY) ## Run the quickstart fleet and write runs/quickstart/report.html
	$(BIN)/mest-fed simulate --preset quickstart

# Three processes for two cores, since many tests wait for processes that they start; each gets the
# whole of a file, since fixtures are shared within files. Threads that wait do so without turning.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

study-smoke: $(READY) ## Run the small study, as far as it is not done, and write its page
	folder=runs/studies/quickstart; \
	$(BIN)/mest-fed study quickstart --out $$folder --parallel 2 --workers 0 \
		$$(test -e $$folder/cells.json && echo --resume)

# Studies whose records are kept, the shortest first; DATA is a folder of CIFAR-10.
STUDIES := quickstart pruning sending sparse-or-dense defaults budgets stragglers pfl-frontier pfl
study: $(READY) ## Compute what the records of studies lack (hours, resumable), and write docs/results.md anew
	for name in $(STUDIES); do \
		folder=runs/studies/$$name record=docs/records/$$name; \
		$(BIN)/mest-fed study $$name --out $$folder --record $$name $(if $(DATA),--data $(DATA)) \
			$$(test -e $$folder/cells.json && echo --resume) \
			$$(test -e $$record && echo --reuse $$record) || exit; \
	done
	$(BIN)/python docs/records/make_results.py

test: $(READY) ## Run the tests, all but those of test-soak
	$(PYTEST)

test-soak: $(READY) ## Run the long tests that `make test` leaves out
	$(PYTEST) -m soak

test-quick: $(READY) ## Run the tests that need no cluster, network or patience
	$(PYTEST) -m "not slow and not ray and not net and not soak"

# The newest Flower that pyproject.toml allows, in an environment of its own that sees what $(VENV) has.
FLWR_NEXT := 1.42
NEXT := $(VENV)-flwr-$(FLWR_NEXT)

$(NEXT)/.ready: $(READY)
	$(BIN)/python -m venv $(NEXT)
	outer="$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')" && \
	inner="$$($(NEXT)/bin/python -c 'import site; print(site.getsitepackages()[0])')" && \
	echo "import site; site.addsitedir('$$outer')" > "$$inner/outer.pth"
	$(NEXT)/bin/pip install --quiet --disable-pip-version-check "flwr[simulation]==$(FLWR_NEXT).*"
	touch $@

test-flwr-next: $(NEXT)/.ready ## Test the parts that meet Flower with the newer of its two versions
	OMP_WAIT_POLICY=passive $(NEXT)/bin/python -m pytest -n 2 --dist loadfile \
		tests/conformance tests/server tests/simulation

# What the environment was built from, where pip built it here: only the tests are compiled then.
BUILT = $(firstword $(shell ls -td build/editable/*/ 2>/dev/null))

test-native: $(READY) ## Test the C++ kernels and runtime alone, as they ship
	@if ! command -v $(firstword $(CXX)) >/dev/null; then \
		echo "test-native: skipped, for want of a C++ compiler"; \
	elif [ -n "$(BUILT)" ]; then \
		$(BIN)/ninja -C $(BUILT) mest_selftests && \
		$(BIN)/ctest --test-dir $(BUILT) --output-on-failure; \
	else \
		export CXX="$(CXX)"; $(call SELFTEST,build/native,) && $(call C_PROGRAMS,build/native); \
	fi

test-sets: $(READY) ## Test the C++ as wheels have it, with every instruction set (a long build)
	@$(call SELFTEST,build/native,)

test-sanitize: $(READY) ## Test the C++ kernels and runtime under sanitizers (a long build)
	@if ! command -v $(firstword $(CXX)) >/dev/null; then \
		echo "test-sanitize: skipped, for want of a C++ compiler"; \
	else \
		export CXX="$(CXX)"; $(call SELFTEST,build/native-asan,-DMEST_SANITIZE=ON) && \
		MEST_C_ALIKE=0 $(call C_PROGRAMS,build/native-asan); \
	fi

test-races: $(READY) ## Test the C++ kernels' threads for races
	@if ! command -v $(firstword $(CXX)) >/dev/null; then \
		echo "test-races: skipped, for want of a C++ compiler"; \
	else \
		export CXX="$(CXX)"; $(call SELFTEST,build/native-tsan,-DMEST_SANITIZE_THREADS=ON); \
	fi

test-arm: $(READY) ## Test the C++ kernels for 64-bit ARM under emulation
	@if ! command -v $(ARM_CXX) >/dev/null || [ -z "$(QEMU)" ]; then \
		echo "$(ARM_TOOLS)"; \
	else \
		$(call SELFTEST,build/native-arm,-DCMAKE_SYSTEM_NAME=Linux \
			-DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(ARM_CXX) \
			-DCMAKE_C_COMPILER=$(ARM_CC) \
			"-DCMAKE_CROSSCOMPILING_EMULATOR=$(QEMU);-L;/usr/aarch64-linux-gnu") && \
		MEST_C_ALIKE=0 MEST_C_EMULATOR="$(QEMU) -L /usr/aarch64-linux-gnu" \
			$(call C_PROGRAMS,build/native-arm); \
	fi

proto: $(READY) ## Generate the edge link's code from its protocol
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. mest_fed/link/mest_link.proto

docs: $(READY) ## Build the documentation into build/site; fails on a broken link
	$(BIN)/mest-fed config --format markdown > docs/configuration.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

lint: $(READY) ## Check style, types and the floors of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment and caches (runs/ stays)
	rm -rf $(VENV) $(NEXT) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
