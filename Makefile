# Needs an activated environment. `bash .ci/run` does all of this in a fresh one.
.PHONY: install style test docs

install:
	pip install -e ".[test,docs]" pre-commit
	pre-commit install

style:
	ruff check --fix .
	ruff format .
	codespell
	mypy

test:
	python -m pytest -q

docs:
	python docs/make_reference.py
	python -m sphinx -q -W --keep-going -j auto -d build/doctrees docs build/docs
