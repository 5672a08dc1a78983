# make demo   installs, trains on real video, shows the result
# make test   runs the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
METHOD ?= appo
RUN ?= runs/demo-$(METHOD)
CODE := trl_perception tests benchmarks

.PHONY: install demo test test-slow quality style bench soak clean

install: $(VENV)/.installed

# uv takes a torch and a torchvision that fit together from the registry, in seconds.
$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is wanted, found {sys.version}"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip install -q --system-certs --python $(BIN)/python -e '.[dev]'
	touch $@

# Nothing is fetched: the model ships with the package and the videos are made here.
demo: export HF_HUB_OFFLINE = 1
demo: export PYTHONWARNINGS = ignore
demo: install
	$(BIN)/accelerate launch --config_file recipes/accelerate_configs/cpu.yaml --num_cpu_threads_per_process 1 \
		-m trl_perception.train --config recipes/$(METHOD)/tiny.yaml --output_dir $(RUN)
	$(BIN)/python -m trl_perception.cli.show --model $(RUN) --recipe recipes/$(METHOD)/tiny.yaml

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8

# With models in 4 and 8 bit, and under DeepSpeed, which compiles an operation of its own once.
test-slow: install
	$(BIN)/uv pip install -q --system-certs --python $(BIN)/python -e '.[dev,quant,deepspeed]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n auto --maxprocesses 8

quality: install
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/lint-imports --no-cache

style: install
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: install
	$(BIN)/python -m benchmarks.media
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.performance --json docs/performance.json

# A thousand steps of every method: some forty minutes on two cores.
soak: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.soak --json docs/reliability.json

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
