#!/usr/bin/env bash
# How much do more labels help? Trains a task on shares of its training posts, each within the next, with every seed, tests all
# on the whole test split, and writes one table: mean ± standard deviation over seeds, a column a share.
#
# Parameters come from the environment; finished runs are skipped, so it may be interrupted and started again:
#
#   TASK=label FRACTIONS="0.05 0.1 0.25 0.5 1.0" SEEDS="0 1 2" OUT=adapters/learning_curve \
#     EXTRA="encoder=minilm data.dir=../shared/data" scripts/learning_curve.sh
set -euo pipefail
cd "$(dirname "$0")/.."

TASK=${TASK:-label}
FRACTIONS=${FRACTIONS:-0.05 0.1 0.25 0.5 1.0}  # shares of the training posts
SEEDS=${SEEDS:-0 1 2}                          # one run a seed and share; the posts of a share are the same for all
METRICS=${METRICS:-*_accuracy *_macro_f1}      # globs of the rows of the table
OUT=${OUT:-adapters/learning_curve}            # where the saved runs go
EXTRA=${EXTRA:-}                               # further overrides for every run, separated by spaces

read -ra fractions <<<"$FRACTIONS"
read -ra seeds <<<"$SEEDS"
read -ra metrics <<<"$METRICS"
read -ra extra <<<"$EXTRA"

runs=() names=()
for fraction in "${fractions[@]}"; do
  for seed in "${seeds[@]}"; do
    run=$OUT/${TASK}_${fraction}_$seed
    uv run main.py "tasks=[$TASK]" "tasks.$TASK.corpus.fraction=$fraction" "seed=$seed" data.leaks=drop \
      "action=[train,test]" "save_path=$run" ${extra[@]+"${extra[@]}"}
    runs+=("$run") names+=("$fraction")
  done
done

table() { uv run analysis/table.py "${runs[@]}" --name "${names[@]}" --mean --metric "${metrics[@]}" "$@"; }
table --format csv --output "$OUT/table.csv"
table --format org --output "$OUT/table.org"
cat "$OUT/table.org"
