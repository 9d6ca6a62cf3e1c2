#!/usr/bin/env bash
# Partition, merge or single: is one adapter trained on all target groups better, or adapters trained on parts of them,
# merged afterwards? Trains the parts, their merge and the single adapter, tests all, and writes the tables.
#
# Parameters come from the environment; finished runs are skipped, so it may be interrupted and started again:
#
#   PARTS=4 WARMUP=15 SEED=0 OUT=adapters/small/lora16 EXTRA="encoder=minilm data.dir=../shared/data" scripts/partition_study.sh
set -euo pipefail
cd "$(dirname "$0")/.."

PARTS=${PARTS:-4}                  # how many parts the labels are cut into
TASK=${TASK:-target}               # the multilabel task
WARMUP=${WARMUP:-15}               # epochs of warm-up of the merged adapter
SEED=${SEED:-0}
OUT=${OUT:-adapters/small/lora16}  # where the saved runs go
EXTRA=${EXTRA:-}                   # further overrides for every run, separated by spaces

read -ra extra <<<"$EXTRA"
hatemtl() { uv run main.py "tasks=[$TASK]" "seed=$SEED" "$@" ${extra[@]+"${extra[@]}"}; }
tested() { grep -qs "^test_" "$1/results.csv"; }

for ((i = 1; i <= PARTS; i++)); do
  hatemtl "tasks.$TASK.mask_pattern=$i $PARTS" "save_path=$OUT/${TASK}_part_$i"
done
hatemtl method=ah_merge16 "optimization.warmup=$WARMUP" "method.sources='$OUT/${TASK}_part_*'" "save_path=$OUT/${TASK}_merge"
hatemtl "save_path=$OUT/${TASK}_single"

load=(action=test method=ah_load heads.load=true)
for ((i = 1; i <= PARTS; i++)); do
  run=$OUT/${TASK}_part_$i
  tested "$run" || hatemtl "${load[@]}" "tasks.$TASK.mask_pattern=$i $PARTS" "load_path=$run"
done
for run in "$OUT/${TASK}_merge" "$OUT/${TASK}_single"; do
  tested "$run" || hatemtl "${load[@]}" "load_path=$run"
done

uv run analysis/partition_f1.py "$OUT/${TASK}_part_*/results.csv" --format csv --output "$OUT/partitioned.csv"
runs=("$OUT/partitioned.csv" "$OUT/${TASK}_single" "$OUT/${TASK}_merge")
names=(--name partitioned --name single --name merged)
uv run analysis/table.py "${runs[@]}" "${names[@]}" --format org --output "$OUT/table.org"
uv run analysis/table.py "${runs[@]}" "${names[@]}"
