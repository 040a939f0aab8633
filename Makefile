# fastmmu: `make demo` shows what it does, `make test` shows that it works. Each does all the set-up, once, in .venv.

PYTHON ?= python3
BIN     = .venv/bin
PIP     = $(BIN)/python -m pip --disable-pip-version-check --quiet
KERNELS = $(shell find src -name '*.pyx' -o -name '*.pxd')
SOURCES = $(shell find src -name '*.py' -o -name '*.pyi' -o -name '*.toml' -o -name '*.xz') $(KERNELS)
INVARIANT_TESTS = tests/mmu tests/kvm/test_specification.py tests/kvm/test_properties.py tests/machine/test_equivalence.py
STUBS   = $(subst /,.,$(patsubst src/%.pyi,%,$(shell find src -name '*.pyi')))
CALLS  ?= 500000
SEED   ?= 1
BENCH   = $(BIN)/python -m pytest -q bench --benchmark-columns median,iqr,rounds --benchmark-sort fullname
export FASTMMU_JOBS ?= $(shell nproc 2>/dev/null || echo 1)

.PHONY: help demo test hostile check check-invariants sanitize bench bench-full bench-compare bench-gate conformance kvm-agreement files fuzz docs wheel wheel-test clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /    make \1\t/p' Makefile | expand -t 28

demo: .venv/with-$(if $(PROGRAM),record,cli) ## native, shadow paging, EPT and EPT + VPID compared: bundled traces, or PROGRAM='ls -l /' under Valgrind
	$(if $(PROGRAM),$(BIN)/fastmmu record -o .venv/program.arrow -- $(PROGRAM) || test $$? != 2)
	$(BIN)/fastmmu compare $(if $(PROGRAM),.venv/program.arrow)

test: .venv/with-test ## all tests, as many at a time as there are processors
	$(BIN)/python -m pytest --numprocesses $(FASTMMU_JOBS) --benchmark-disable tests bench

hostile: .venv/with-test ## half a million calls of everything public with what no call expects (CALLS=, SEED=): no crash, our errors
	$(BIN)/python -m tests.support.hostile_calls --calls $(CALLS) --seed $(SEED)

check: .venv/with-check ## style, types, layers, and no Python in the kernels' hot loops
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(BIN):$$PATH" cython-lint src examples
	$(BIN)/stubtest --concise --ignore-disjoint-bases --allowlist tools/stubs.allow $(STUBS)
	$(BIN)/python -m pytest -q tests/project/test_layers.py tests/project/test_annotate.py

check-invariants: .venv/with-test ## the tests of the MMU on a build that asserts what every change of an entry must keep
	FASTMMU_CHECKS=1 FASTMMU_CFLAGS="-O1 -g0" $(BIN)/python setup.py -q build --build-lib build/checks/lib --build-temp build/checks
	FASTMMU_CHECKS=1 PYTHONPATH=build/checks/lib $(BIN)/python -m pytest -q --numprocesses $(FASTMMU_JOBS) $(INVARIANT_TESTS)

sanitize: .venv/with-test ## kernels under AddressSanitizer and UBSan: hostile calls and the property tests
	$(BIN)/python tools/sanitize.py

bench: .venv/with-test ## speed, in turns with a yardstick of tuned C (FASTMMU_YARDSTICK names it) and other ways; minutes
	@mkdir -p bench/results
	$(BENCH) --bench-scale usual --benchmark-json bench/results/usual.json
	$(BIN)/python -m bench.table bench/results/usual.json

bench-full: .venv/with-bench ## the same with full sizes, and other packages beside it; one table in Markdown
	@mkdir -p bench/results
	$(BENCH) --bench-scale full --benchmark-json bench/results/full.json
	$(BIN)/python -m bench.table bench/results/full.json

bench-compare: .venv/with-test ## this tree against BASE=revision: both built, run in turns (FILES=bench/test_tlb.py K=hot TURNS=5)
	$(BIN)/python -m bench.compare $(or $(BASE),$(error BASE= names a revision)) $(FILES) $(if $(K),-k '$(K)') $(if $(TURNS),--turns $(TURNS))

bench-gate: .venv/with-test ## instructions an item, counted by callgrind, beside bench/instructions.json (UPDATE=1 writes it)
	$(BIN)/python -m bench.instructions $(if $(UPDATE),--update)

conformance: .venv/with-test ## every recorded vector, guest and system trace (FASTMMU_VECTORS, _GUESTS, _TRACES, else samples) through every implementation
	$(BIN)/python -m tests.conformance

kvm-agreement: .venv/with-test ## what real KVM did (FASTMMU_KVM_EXITS, else a sample), exit for exit, against this machine
	$(BIN)/python -m tests.agreement

files: .venv/with-test ## files that other tools wrote (FASTMMU_FILES), each read right or refused by name
	$(BIN)/python -m tests.files

fuzz: .venv/with-fuzz ## every reader of files under atheris, guided by coverage, until N=2000000 inputs; goes on where it was
	nice $(BIN)/python -m tests.files.fuzz $(if $(N),--inputs $(N)) $(if $(READER),--only '$(READER)')

docs: .venv/with-docs ## the documentation, build/docs/index.html: tutorials, how-to pages, rules, reference; set up, it needs no network
	$(BIN)/python -m sphinx --builder html -W --keep-going --quiet --doctree-dir build/doctrees docs build/docs
	@echo "fastmmu: build/docs/index.html"

wheel: .venv/wheel ## sdist, and one wheel for CPython 3.11 and later, in dist/: built, checked, installed and tried
	@ls dist/*

wheel-test: .venv/wheel ## that wheel under more tests, on each CPython from 3.11 on that is found (FASTMMU_PYTHONS names others)
	$(BIN)/python tools/try_wheel.py dist/*.whl

clean: ## removes everything that make made
	rm -rf .venv build dist bench/results src/*.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find src -name '*.so' -delete
	find . -name __pycache__ -type d -exec rm -rf {} +

# ---- set-up: each file in .venv/ stands for a step that is done again only where what it depends on changed --------

.venv/with-cli: .venv/tools $(KERNELS)
	@echo "fastmmu: compiling the kernels, installing into .venv (a minute or so the first time)"
	@$(PIP) install --no-build-isolation -e '.[cli]'
	@touch $@

.venv/with-record: .venv/with-cli
	@$(PIP) install --no-build-isolation -e '.[cli,arrow]'
	@touch $@

.venv/with-test: .venv/tools $(KERNELS)
	@echo "fastmmu: compiling the kernels, installing into .venv with all extras (a minute or so the first time)"
	@$(PIP) install --no-build-isolation -e '.[all]' --group test
	@touch .venv/with-cli .venv/with-record $@

PEERS = $(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["bench"], sep="\n")'

.venv/with-bench: .venv/with-test
	@echo "fastmmu: installing what it is set beside into .venv"
	@$(PEERS) | while read -r peer; do $(PIP) install "$$peer" </dev/null || echo "fastmmu: no $$peer to be had; its benches are skipped"; done
	@touch $@

.venv/with-fuzz: .venv/with-test
	@echo "fastmmu: installing the fuzzer into .venv"
	@$(PIP) install --group fuzz
	@touch $@

.venv/with-docs: .venv/with-cli
	@echo "fastmmu: installing what builds the documentation into .venv"
	@$(PIP) install --group docs
	@touch $@

.venv/with-check: .venv/with-test
	@echo "fastmmu: installing the checkers into .venv"
	@$(PIP) install --group check
	@touch $@

.venv/wheel: .venv/tools $(SOURCES)
	@echo "fastmmu: building and checking the wheel in dist/"
	@$(PIP) install --group wheel
	@rm -rf dist
	FASTMMU_LIMITED_API=1 $(BIN)/python -m build --no-isolation --outdir dist >/dev/null
	$(BIN)/abi3audit --strict dist/*.whl
	$(BIN)/twine check --strict dist/*
	FASTMMU_PYTHONS=$(BIN)/python $(BIN)/python tools/try_wheel.py dist/*.whl tests/paging/test_worked_examples_guest.py
	@touch $@

.venv/tools: pyproject.toml setup.py
	@tools/check_tools.sh $(PYTHON)
	@echo "fastmmu: setting up .venv"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@$(PIP) install --upgrade pip
	@$(PIP) install --group build
	@touch $@
