# make demo   installs, trains on real video, shows the result
# make test   runs the tests
# make lock   renews requirements/, which the two above install
PYTHON ?= python3
VENV ?= .venv
LATEST ?= .venv-latest
ENGINE ?= .venv-vllm
BIN := $(VENV)/bin
METHOD ?= appo
RUN ?= runs/demo-$(METHOD)
CODE := trl_perception tests benchmarks docs

UV := $(BIN)/uv
# What requirements/ lists is installed, and nothing else, with its hashes; sources are built with versions listed there.
INSTALL = $(UV) pip install -q --system-certs --python $(BIN)/python
COMPILE = $(UV) pip compile -q --system-certs --universal --python-version 3.11 --fork-strategy fewest --no-annotate \
	--custom-compile-command 'make lock'

.PHONY: install demo test test-latest slow-extras test-slow test-processes test-families test-vllm lock newest quality docs style bench gpu-check soak study study-smoke clean

install: $(VENV)/.installed

$(VENV)/.uv: requirements/uv.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is wanted, found {sys.version}"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --require-hashes -r $<
	touch $@

$(VENV)/.installed: $(VENV)/.uv setup.cfg pyproject.toml requirements/dev.txt
	$(INSTALL) --require-hashes -r requirements/dev.txt
	$(INSTALL) --build-constraints requirements/dev.txt --no-deps -e .
	touch $@

# The newest versions that setup.cfg allows, the same for Python 3.11 to 3.13.
lock: $(VENV)/.uv
	$(COMPILE) --upgrade --generate-hashes --extra dev setup.cfg -o requirements/dev.txt
	$(COMPILE) --upgrade --generate-hashes --extra dev --extra quant --extra deepspeed -c requirements/dev.txt setup.cfg \
		-o requirements/slow.txt
	$(COMPILE) --upgrade --generate-hashes --extra dev --extra docs -c requirements/dev.txt setup.cfg -o requirements/docs.txt
	echo uv | $(COMPILE) --upgrade --generate-hashes - -o requirements/uv.txt

# What `make lock` would change, and what the ranges of setup.cfg hold back. It changes nothing.
newest: install
	@$(COMPILE) --extra dev setup.cfg | sed -n 's/^\([a-z0-9][^ ]*\).*/\1/p' > $(VENV)/newest.txt
	@sed -n 's/^\([a-z0-9][^ ]*\).*/\1/p' requirements/dev.txt | diff - $(VENV)/newest.txt \
		&& echo 'The lock has the newest versions that setup.cfg allows.' || echo '(< locked, > the newest that setup.cfg allows)'
	@echo 'Newer than the lock, whether setup.cfg allows it or not:'
	@$(UV) pip list --system-certs --python $(BIN)/python --outdated

# Nothing is fetched: the model ships with the package and the videos are made here.
demo: export HF_HUB_OFFLINE = 1
demo: install
	$(BIN)/accelerate launch --config_file recipes/accelerate_configs/cpu.yaml --num_cpu_threads_per_process 1 \
		-m trl_perception.train --config recipes/$(METHOD)/tiny.yaml --output_dir $(RUN)
	$(BIN)/python -m trl_perception.cli.show --model $(RUN) --recipe recipes/$(METHOD)/tiny.yaml

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8

# The same on the newest versions that setup.cfg allows, in an environment of its own.
test-latest:
	$(MAKE) $(LATEST)/.uv VENV=$(LATEST)
	$(LATEST)/bin/uv pip install -q --system-certs --python $(LATEST)/bin/python --upgrade -e '.[dev]'
	OMP_NUM_THREADS=1 $(LATEST)/bin/python -m pytest -n auto --maxprocesses 8

# With models in 4 and 8 bit, and under DeepSpeed, which compiles an operation of its own once.
FAMILIES := tests/families tests/processes/test_families.py
PROCESSES := tests/processes tests/callbacks/nonfinite/test_nonfinite_processes.py tests/evaluation/test_processes.py
SLOW := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n auto --maxprocesses 8

slow-extras: install
	$(INSTALL) --require-hashes --build-constraints requirements/dev.txt -r requirements/slow.txt

test-slow: slow-extras
	$(SLOW) $(foreach part,$(FAMILIES) $(PROCESSES),--ignore=$(part))

# The slow tests of several processes: DDP, FSDP2 and ZeRO give what one process gives.
test-processes: slow-extras
	$(SLOW) $(PROCESSES) --ignore=tests/processes/test_families.py

# The slow tests of the families: each of them with every method, along every path, and on two processes.
test-families: slow-extras
	$(SLOW) $(FAMILIES)

# With vLLM for CPUs, which wants a torch of its own, in an environment of its own.
test-vllm: $(ENGINE)/.engine
	OMP_NUM_THREADS=1 $(ENGINE)/bin/python -m pytest tests/engine -m 'slow or not slow'

$(ENGINE)/.engine: setup.cfg pyproject.toml requirements/vllm.txt
	$(MAKE) $(ENGINE)/.uv VENV=$(ENGINE)
	$(ENGINE)/bin/uv pip install -q --system-certs --python $(ENGINE)/bin/python -r requirements/vllm.txt \
		--override requirements/vllm.txt -e '.[dev,deepspeed]'
	touch $@

quality: install
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/lint-imports --no-cache

# The pages of docs/ and the API reference, in site/. A broken link or a public name without a docstring is an error.
docs: install
	$(INSTALL) --require-hashes --build-constraints requirements/dev.txt -r requirements/docs.txt
	$(BIN)/mkdocs build --strict

style: install
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: install
	$(BIN)/python -m benchmarks.media
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.performance --json docs/performance.json

# On a machine with a GPU: do the fast paths agree with float32, and what does a step of every method cost? With the
# machine's own Python where nothing was installed here.
gpu-check:
	@$(if $(wildcard $(VENV)/.installed),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu_check --json runs/gpu-check.json

# A thousand steps of every method: some forty minutes on two cores.
soak: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.soak --json docs/reliability.json

# All methods by eight seeds: many hours; the same command resumes. study-smoke is the same command in small.
study study-smoke: export HF_HUB_OFFLINE = 1
study: install
	$(BIN)/python -m benchmarks.study --config benchmarks/tuning.yaml
	$(BIN)/python -m benchmarks.study
	$(BIN)/python -m benchmarks.study_colors --json docs/colors.json
	$(BIN)/python -m benchmarks.study_signals --json docs/signals.json
	$(BIN)/python -m benchmarks.study --config benchmarks/ablations.yaml
	$(BIN)/python -m benchmarks.gradient_variance --model benchmarks/study_models/student --json docs/gradients.json
	$(BIN)/python -m benchmarks.study_page

study-smoke: install
	$(BIN)/python -m trl_perception.cli.study --config study/smoke

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis
