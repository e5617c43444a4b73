.PHONY: check lint types test format

check: lint types test ## everything a reviewer would ask for, in the active environment

lint:
	ruff check .

types:
	mypy

test:
	pytest

format:
	ruff format .
	ruff check --fix .
