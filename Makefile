# Every target works from a fresh clone: `make demo` sets everything up first. `make help` lists the targets.
PYTHON ?=
VENV := .venv/bin

# An apt ROS sourced in this shell would shadow the one in .venv.
unexport PYTHONPATH
unexport PYTHONHOME
unexport AMENT_PREFIX_PATH
unexport CMAKE_PREFIX_PATH
unexport COLCON_PREFIX_PATH
unexport LD_LIBRARY_PATH
# The middleware of .venv is its own; told of another one, `import rclpy` ends the process.
unexport RMW_IMPLEMENTATION
unexport CYCLONEDDS_URI

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-teleop test test-lerobot test-strict coverage lint audit docs reference clean

help:  ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1#\2/p' Makefile | awk -F'#' '{printf "%-20s %s\n", $$1, $$2}'

setup:  ## .venv with pinned requirements and ROS 2, messages built (fast when nothing changed)
	@PYTHON="$(PYTHON)" .ci/setup

demo: setup  ## a trained policy does three tasks it is told in words, on the simulated Franka
	@$(VENV)/vipra demo $(ARGS)

demo-teleop: setup  ## emulated GELLO -> simulated arm -> bags -> data set -> replay, in one go
	@$(VENV)/vipra demo-teleop $(ARGS)

test: setup  ## all tests; ARGS="-k limits" selects
	@$(VENV)/python -m pytest $(ARGS)

test-lerobot: setup  ## our data set opens with the real lerobot package (own venv, 7 GB; not in CI)
	@test/lerobot/run

test-strict: setup  ## real franky against a controller that enforces the robot's limits; MINUTES=10 for the claim
	@.ci/strict

coverage: setup  ## the tests once more, and which modules they reach least; all lines in build/coverage
	@mkdir -p build/coverage
	@$(VENV)/python -m pytest --cov --cov-report= $(ARGS); status=$$?; $(VENV)/coverage html --quiet; \
	$(VENV)/coverage report | sed -n '1,27p;$$p'; echo "build/coverage/index.html"; exit $$status

lint: setup  ## ruff
	@$(VENV)/ruff check .

audit: setup  ## known holes of the pinned releases; says so where nobody can be asked
	@$(VENV)/python .ci/audit $(ARGS)

docs: setup  ## the documentation as a site, in build/site
	@$(VENV)/mkdocs build --strict --quiet && echo "build/site/index.html"

reference: setup  ## docs/reference again, from the code
	@$(VENV)/python docs/generate.py

clean:  ## remove everything that make setup made
	rm -rf .venv build install log *.egg-info .pytest_cache .ruff_cache .hypothesis
