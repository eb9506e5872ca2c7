# make demo trains ViViT on eight motions and plots the result. make test runs lint, type checks and tests.
# Each target creates .venv first. To use another Python: make PYTHON=python3.12 demo
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test tests test-fast test-all gate lint fidelity bench bench-guard bench-model gpu-wheels fuzz audit
.PHONY: configuration docs pictures notebook reliability lock clean

demo: install
	@echo "Makes 1,400 small videos of eight motions (data/demo, 1 minute, once), trains a small ViViT on them and scores it"
	@echo "on frames in order, reversed and shuffled: two to four minutes on 2 CPU cores. All results go to runs/demo."
	rm -rf runs/demo
	$(BIN)/python train.py hydra.run.dir=runs/demo
	$(BIN)/python eval.py ckpt_path=runs/demo/checkpoints/best.ckpt eval.order=reversed hydra.run.dir=runs/demo/reversed
	$(BIN)/python eval.py ckpt_path=runs/demo/checkpoints/best.ckpt eval.order=shuffled hydra.run.dir=runs/demo/shuffled
	$(BIN)/python -m vivit_train.tools.demo_report runs/demo

test: install
	$(MAKE) -j2 lint tests

tests: install
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: install # under a minute: without the tests that train, start processes or decode many videos
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu and not heavy"

gate: install # same losses before and after: 20 steps of the demo beside those of a commit; REF=main make gate
	$(BIN)/python benchmarks/gate.py $(or $(REF),HEAD)

test-all: lint
	$(BIN)/uv pip install --quiet --python $(BIN)/python --group slow --group docs
	$(BIN)/python -m pytest -n 2 --dist worksteal -m ""

fidelity: install # writes docs/fidelity.md: our numbers compared with the paper's and the reference code's
	PYTHONPATH=tests $(BIN)/python benchmarks/fidelity.py

bench: install # docs/benchmarks.md, "Decoding": the speed of reading clips; 10 minutes. PYTHONPATH may add pytorchvideo
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/speed.py

bench-model: install # docs/benchmarks.md, "The model": compared with Hugging Face's, and its parts; half an hour on two cores
	$(BIN)/python benchmarks/speed_model.py

GPU_PYTHON ?= 3.12
gpu-wheels: install # wheels/: the locked packages that a bare GPU machine lacks, so that scripts/gpu.sh can install them offline
	mkdir -p wheels
	awk '/^[a-z]/ { wanted = /^(av|hydra-core|msgpack|omegaconf)==/ } wanted' requirements.lock > wheels/binary.txt
	awk '/^[a-z]/ { wanted = /^antlr4-python3-runtime==/ } wanted' requirements.lock > wheels/source.txt
	$(BIN)/python -m pip download --quiet --no-deps --require-hashes --only-binary :all: --dest wheels -r wheels/binary.txt --implementation cp --python-version $(GPU_PYTHON) --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64
	$(BIN)/python -m pip wheel --quiet --no-deps --require-hashes --wheel-dir wheels -r wheels/source.txt
	du -sh wheels

bench-guard: install # part of `make test`: compares the cost of a step, in counts, with the recorded cost
	PYTHONPATH=tests/data $(BIN)/python benchmarks/guard.py

fuzz: install # 20,000 mutated files for each of our parsers; one parser: benchmarks/fuzz.py csv --cases 1000 --seed 5
	$(BIN)/python benchmarks/fuzz.py

audit: install # checks the locked packages against published advisories, or, if these are unavailable, the age of the lock
	$(BIN)/python benchmarks/audit.py

configuration: install # writes docs/configuration.md and docs/commands.md: every key, and every command of vivit
	$(BIN)/python -m vivit_train.help conf > docs/configuration.md
	$(BIN)/python scripts/commands_page.py > docs/commands.md

docs: install # builds the documentation into site/, which needs no network: open site/index.html
	$(BIN)/uv pip install --quiet --python $(BIN)/python --group docs
	$(BIN)/python scripts/build_site.py

RUN ?= runs/demo
VIDEOS ?= data/demo
pictures: install # takes the pictures of the tutorial, by default of the demo (make demo); needs Chromium
	$(BIN)/python scripts/pictures.py $(RUN) $(VIDEOS) $(if $(ONLY),--only $(ONLY))

notebook: install # runs examples/quickstart.ipynb and stores its outputs
	$(BIN)/uv pip install --quiet --python $(BIN)/python --group docs
	$(BIN)/python scripts/run_notebook.py

reliability: install # writes docs/reliability.md: every fault that the tests cause, and its outcome
	$(BIN)/python benchmarks/reliability.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff check --preview --select PLW1514 src train.py eval.py # text files are UTF-8 in every locale
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python >= 3.11 is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

lock: # run after changing dependencies in pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --python-version 3.11 --extra optuna --extra submitit --extra tensorboard --group dev pyproject.toml -o requirements.lock

clean:
	rm -rf .venv .gpu site .pytest_cache .ruff_cache .mypy_cache
