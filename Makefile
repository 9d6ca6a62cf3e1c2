.PHONY: check test test-slow demo clean

check:      ## lint, format and types
	uv run ruff check .
	uv run ruff format --check .
	uv run mypy

test:       ## the fast tests
	uv run pytest

test-slow:  ## the slow ones: PEFT, loggers
	uv run pytest -m slow

demo:       ## everything once, without network or data
	uv run main.py experiment=demo

clean:      ## what tools leave; saved runs stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache adapters/.multirun
	find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +
