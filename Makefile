.PHONY: check test test-slow trust lock licences advisories promises mutation coverage demo clean

check:      ## lint, format and types
	uv run ruff check .
	uv run ruff format --check .
	uv run mypy

test:       ## the fast tests
	uv run pytest

test-slow:  ## the slow ones: PEFT, loggers
	uv run pytest -m slow

trust: lock licences promises advisories    ## what docs/trust.org promises; advisories come last, since they need the network

lock:       ## uv.lock is that of pyproject.toml, and each file in it has its hash
	uv lock --check
	uv run pytest tests/test_dependencies.py

licences:   ## of all that is installed; fails at one that nobody read
	uv run scripts/licences.py --extra adapterhub mtl dev

# CVE-2026-4372, of transformers 4.57, which AdapterHub asks for: a key of config.json names code that the package `kernels`
# would run. We refuse that key before transformers reads the file, and `kernels` is no dependency: tests/encoders/test_pretrained.py.
KNOWN = --ignore CVE-2026-4372
advisories: ## asks api.osv.dev of every package in uv.lock; fails at a new advisory
	uv audit --preview-features audit-command --locked $(KNOWN)

promises:   ## the tests that docs/trust.org names, slow ones too
	uv run pytest -m "slow or not slow" tests/command tests/test_determinism.py tests/training/test_plain_loop.py \
	    tests/heads tests/merging tests/evaluations tests/corpora tests/saved_runs tests/encoders/test_files.py tests/encoders/test_pretrained.py \
	    tests/machine/test_interruption.py tests/using/serve tests/test_harmless.py tests/test_main.py tests/methods/bottleneck tests/training/test_clock.py tests/training/test_loggers.py tests/training/launch tests/tuning \
	    tests/analysis tests/test_run.py tests/test_wheel.py tests/test_readme.py tests/test_release.py tests/test_crew.py tests/test_compile.py tests/benchmarks/test_rounding.py \
	    tests/benchmarks/test_gpu_check.py

mutation:   ## changes the code a little, and asks the tests; hours
	uv run scripts/mutation.py

coverage:   ## which lines the tests run, slow ones too
	uv run --with "coverage>=7.10,<8" --with "pytest-cov>=6.2,<8" pytest -m "not trust and not network and not gpu" --cov --cov-report=term

demo:       ## everything once, without network or data
	uv run main.py experiment=demo

clean:      ## what tools leave; saved runs stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache adapters/.multirun
	find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +
