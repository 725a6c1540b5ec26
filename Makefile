# `make demo` and `make test` are all a newcomer needs; each makes its virtual environment.
PYTHON ?= python3
BIN := .venv/bin
ATTACKS := .venv-attacks/bin
MODELS := .venv-models/bin
RAY := .venv-ray/bin
PIP_FLAGS := --quiet --disable-pip-version-check -c constraints.txt
# Small networks on busy cores run many times slower with more than one thread per process.
export OMP_NUM_THREADS := 1
# Many tests start processes, which would compile every file again.
export PYTHONDONTWRITEBYTECODE :=
# Processes of the test suite; a file's tests stay together, the long ones come first.
TEST_PROCESSES ?= 2

.PHONY: demo test test-slow lint bench test-attacks test-models test-ray test-browser clean

demo: .venv/demo.stamp  ## purify, attack, judge and report on the bundled digits
	$(BIN)/depura demo --out runs/demo

test: .venv/test.stamp  ## the test suite
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

test-slow: .venv/test.stamp  ## what `make test` leaves out: benchmarks, simulations, published codes, records verified and extended
	$(BIN)/python -m pytest -m slow -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

lint: .venv/dev.stamp  ## style, types, docstrings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/pydoclint --quiet src

bench: .venv/test.stamp  ## speed and memory, as ratios within one run; a large network takes over half an hour on two cores
	$(BIN)/python -m benchmarks.speed --out runs/speed.json
	$(BIN)/python -m benchmarks.purification
	$(BIN)/python -m benchmarks.gradients --out runs/gradients.json

test-attacks: .venv-attacks/stamp  ## torchattacks, foolbox, ART and pyautoattack, both ways
	$(ATTACKS)/python -m pytest -m attacks tests/end_to_end/test_attack_libraries.py

test-models: .venv-models/stamp  ## torchvision, timm and RobustBench: their classifiers by name
	$(MODELS)/python -m pytest -m models tests/end_to_end/test_model_libraries.py

test-ray: .venv-ray/stamp  ## units computed by Ray: lost nodes, killed runs, GPUs
	$(RAY)/python -m pytest -m ray tests/end_to_end/test_ray.py

test-browser: .venv/browser.stamp  ## reports in a real browser; needs Chromium and its driver (Debian: chromium chromium-driver)
	$(BIN)/python -m pytest -m browser -rs tests/end_to_end/test_report_in_browser.py

clean:
	rm -rf .venv .venv-attacks .venv-models .venv-ray

.venv/made.stamp:
	$(PYTHON) -m venv .venv
	touch $@

# Python compiles what is imported, when it is; compiling every file takes longer than installing them.
.venv/demo.stamp: .venv/made.stamp pyproject.toml constraints.txt
	$(BIN)/pip install $(PIP_FLAGS) --no-compile -e '.[report]'
	touch $@

.venv/test.stamp: .venv/made.stamp pyproject.toml constraints.txt
	$(BIN)/pip install $(PIP_FLAGS) -e '.[report,test]'
	touch $@

.venv/dev.stamp: .venv/test.stamp
	$(BIN)/pip install $(PIP_FLAGS) -e '.[report,test,dev]'
	touch $@

.venv/browser.stamp: .venv/test.stamp
	$(BIN)/pip install $(PIP_FLAGS) -e '.[report,test,browser]'
	touch $@

# torchattacks asks for torchvision and for an old requests, and needs neither for its attacks: installed without
# dependencies. So is pyautoattack, a wheel of 42 MB; it is imported without TensorFlow.
.venv-attacks/stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-attacks
	$(ATTACKS)/pip install $(PIP_FLAGS) -e . pytest adversarial-robustness-toolbox foolbox tqdm requests safetensors
	$(ATTACKS)/pip install $(PIP_FLAGS) --no-deps torchattacks pyautoattack==0.2.0
	touch $@

# A torchvision that asks for the torch that is there. RobustBench asks for an old timm and gdown and needs neither; the
# setuptools is for its pkg_resources, pyautoattack for its evaluation, which is imported and not used.
.venv-models/stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-models
	$(MODELS)/pip install $(PIP_FLAGS) -e '.[torchvision,timm]' pytest gdown geotorch pandas requests torchdiffeq 'setuptools<81'
	$(MODELS)/pip install $(PIP_FLAGS) --no-deps pyautoattack robustbench
	touch $@

.venv-ray/stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-ray
	$(RAY)/pip install $(PIP_FLAGS) -e '.[ray]' pytest
	touch $@
