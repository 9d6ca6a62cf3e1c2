#!/usr/bin/env bash
# Mutation testing: changes one operator, number, name or word at a time, and asks the fast tests whether they notice
# (mutmut). For each area it prints how many changes were killed, and fails where that are fewer than LEAST per cent.
# An area takes half an hour to two hours of one core; what was done is kept in OUT, and the same command goes on with it.
#
#   OUT=/tmp/mutation scripts/mutation.sh [merging] [metrics] [statistics] [saved_runs] [batches]
#
# Then, in OUT/AREA: `mutmut results` names those that survived, `mutmut show NAME` shows one.
set -euo pipefail
cd "$(dirname "$0")/.."

OUT=${OUT:-/tmp/hatemtl_mutation}  # a copy of the tree for each area
JOBS=${JOBS:-1}                    # at once
LEAST=${LEAST:-85}                 # per cent of the changes that tests must notice
root=$PWD
[[ $# -gt 0 ]] || set -- merging metrics statistics saved_runs batches

mutmut() { uv run --project "$root" --no-sync --with "mutmut>=3.8,<4" mutmut "$@"; }

area() {  # FILES TESTS: lays out the copy, and lets mutmut change these files
  local files=$1 tests=$2 sources='"hatemtl"' also=
  if [[ ! -d $OUT/$name ]]; then
    mkdir -p "$OUT/$name"
    git ls-files -z --recurse-submodules | xargs -0 tar -c | tar -x -C "$OUT/$name"
    if [[ $name == statistics ]]; then  # whose files tests import by their own names
      cp analysis/*.py "$OUT/$name"
      sources=$files also=$(cd analysis && printf ', "%s"' *.py)
      sed -i 's/^pythonpath = .*/pythonpath = [".", "tests"]/' "$OUT/$name/pyproject.toml"
    fi
    cat >>"$OUT/$name/pyproject.toml" <<TOML

[tool.mutmut]
source_paths = [$sources]
only_mutate = [$files]
also_copy = ["conf", "main.py", "hatemtl", "analysis", "benchmarks", "README.org", "docs"$also]
pytest_add_cli_args = ["-o", "addopts=--import-mode=importlib -p no:xdist -p no:cacheprovider", "-m", "not slow and not trust and not network and not gpu"]
pytest_add_cli_args_test_selection = [$tests]
mutate_only_covered_lines = true
TOML
  fi
  (cd "$OUT/$name" && OMP_NUM_THREADS=1 mutmut run --max-children "$JOBS" >mutmut.log 2>&1) || true
  (cd "$OUT/$name" && mutmut export-cicd-stats >/dev/null 2>&1 && python3 - "$name" "$LEAST" <<'PY'
import json
import sys

name, least = sys.argv[1], float(sys.argv[2])
told = json.load(open("mutants/mutmut-cicd-stats.json"))
killed = told["killed"] + told["timeout"] + told["suspicious"] + told["segfault"]
asked = killed + told["survived"]
share = 100 * killed / asked if asked else 0.0
print(f"{name}: {killed} of {asked} changes killed, {share:.1f} %; {told['no_tests']} in lines that no test reaches")
sys.exit(share < least)
PY
  )
}

failed=0
for name in "$@"; do
  case $name in
    merging) area '"hatemtl/merging/*.py"' '"tests/merging"' ;;
    metrics) area '"hatemtl/heads/*.py", "hatemtl/evaluations/*.py"' '"tests/heads", "tests/evaluations"' ;;
    statistics)
      area '"significance.py", "resampling.py", "intervals.py", "many_comparisons.py", "stochastic_order.py", "outcomes.py", "verdicts.py"' \
        '"tests/analysis/test_significance.py", "tests/analysis/test_compare.py", "tests/analysis/test_outcomes.py"'
      ;;
    saved_runs) area '"hatemtl/saved_runs/*.py"' '"tests/saved_runs"' ;;
    batches) area '"hatemtl/batches/*.py"' '"tests/batches"' ;;
    *)
      echo "$name: expected merging, metrics, statistics, saved_runs or batches" >&2
      exit 2
      ;;
  esac || failed=1
done
exit $failed
