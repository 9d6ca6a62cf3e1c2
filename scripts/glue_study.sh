#!/usr/bin/env bash
# Tasks together, alone, or naively joined: CoLA, MRPC and SST-2 in one model with a head each, in three models of their own,
# and as one task with one label space and one head ("naive joint"). Trains and tests all with each seed, and writes one
# table: accuracy, F1 and Matthews' correlation of each task, mean ± standard deviation over seeds.
#
# Parameters come from the environment; finished runs are skipped, so it may be interrupted and started again. The corpora
# are cut by corpus.fraction, the training posts of all arrangements alike:
#
#   SEEDS="0 1 2" FRACTION=1.0 OUT=adapters/glue EXTRA="encoder=minilm data.dir=../shared/data" scripts/glue_study.sh
set -euo pipefail
cd "$(dirname "$0")/.."

SEEDS=${SEEDS:-0 1 2}       # one run a seed and arrangement
FRACTION=${FRACTION:-1.0}   # share of each corpus' training posts
OUT=${OUT:-adapters/glue}   # where the saved runs go
EXTRA=${EXTRA:-}            # further overrides for every run, separated by spaces

read -ra seeds <<<"$SEEDS"
read -ra extra <<<"$EXTRA"
tasks=(cola mrpc sst2)
f1=(f1_acceptable f1_equivalent f1_positive)  # of the label in the second place, which the joint head calls 1
hatemtl() { uv run main.py "$@" ${extra[@]+"${extra[@]}"}; }
fractions() { printf "$1\n" "${tasks[@]}"; }

runs=() names=()
add() { names+=("$1") && shift && runs+=("$@"); }

for seed in "${seeds[@]}"; do
  mapfile -t cut < <(fractions "tasks.%s.corpus.fraction=$FRACTION")
  hatemtl "tasks=[cola,mrpc,sst2]" "action=[train,test]" "seed=$seed" "${cut[@]}" "save_path=$OUT/together_$seed"
  add together "$OUT/together_$seed"

  for task in "${tasks[@]}"; do
    hatemtl "tasks=[$task]" "action=[train,test]" "seed=$seed" "tasks.$task.corpus.fraction=$FRACTION" \
      "save_path=$OUT/alone_${seed}_$task"
    add alone "$OUT/alone_${seed}_$task"
  done

  mapfile -t cut < <(fractions "tasks.joint.corpus.corpora.%s.fraction=$FRACTION")
  joint=("tasks=[joint]" "seed=$seed" "${cut[@]}")
  hatemtl "${joint[@]}" "save_path=$OUT/joint_$seed"
  for i in "${!tasks[@]}"; do
    task=${tasks[$i]} to=$OUT/joint_${seed}_${tasks[$i]}
    [ -f "$to/results.csv" ] || hatemtl "${joint[@]}" action=test method=ah_load heads.load=true \
      "load_path=$OUT/joint_$seed" "tasks.joint.column=$task" "save_path=$to"
    # its rows under the names that the other arrangements give them
    sed -n "s/^metric,/&/p; s/^test_joint_f1_1,/test_${task}_${f1[$i]},/p
      s/^test_joint_\(accuracy\|macro_f1\|matthews\),/test_${task}_\1,/p" "$to/results.csv" >"$to.csv"
    add joint "$to.csv"
  done
done

metrics=(--metric "*_accuracy" "*_macro_f1" "${f1[@]/#/*_}" "*_matthews")
table() { uv run analysis/table.py "${runs[@]}" --name "${names[@]}" --mean "${metrics[@]}" "$@"; }
table --format org --output "$OUT/table.org"
table --format csv --output "$OUT/table.csv"
table
