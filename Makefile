# make demo   set everything up and run the whole path on generated videos
# make test   set everything up and pass the tests
# make lint   ruff, mypy strict, import rules
# make models train the bundled models again, which took about 2 CPU-hours; VIDEOS=FOLDER of natural videos for the codec,
#             whose training ends at UNTIL=HH:MM
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MODELS := models/tiny
UNTIL ?= $(shell date -d '+95 minutes' +%H:%M)
export HF_HUB_DISABLE_TELEMETRY = 1
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: demo test lint models install clean

install: $(INSTALLED) $(MODELS)

demo: install
	$(BIN)/clipmill demo runs/demo

test: install
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

models: $(INSTALLED)
	$(BIN)/python -m demo.learning.train_codec demo/weights/codec --work runs/codec \
		--until $(UNTIL) $(if $(VIDEOS),--natural $(VIDEOS))
	$(BIN)/python -m demo.learning.tower runs/tower --cpu-s 720
	$(BIN)/python -m demo.learning.train_clip train runs/tower demo/weights/clip --text-s 60 --cpu-s 150
	$(BIN)/python -m demo.learning.train_captioner train demo/weights/captioner --tower runs/tower --state runs/captioner --cpu-s 950
	$(BIN)/python -m demo.learning.train_captioner train demo/weights/captioner --tower runs/tower --state runs/captioner \
		--cpu-s 1450 --codec demo/weights/codec
	$(BIN)/python -m demo.learning.train_captioner train runs/captioner-on --begin demo/weights/captioner \
		--state runs/captioner-tuned --cpu-s 1150 --codec demo/weights/codec
	$(BIN)/python -m demo.learning.train_captioner mix demo/weights/captioner runs/captioner-on demo/weights/captioner

$(MODELS): $(INSTALLED)
	$(BIN)/python -m demo.tiny_models $(MODELS)
	@touch $(MODELS)

$(INSTALLED): pyproject.toml constraints.txt $(wildcard pipeline/_*.[ch])
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "clipmill needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(INSTALLED)

clean:
	rm -rf $(VENV) models runs
