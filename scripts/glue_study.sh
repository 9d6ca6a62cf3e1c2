#!/usr/bin/env bash
# Tasks together, alone, naively joined, or born again: CoLA, MRPC and SST-2 in one model with a head each, in three models of
# their own, as one task with one label space and one head ("naive joint"), and in one model that the three of their own teach
# (Clark et al. 2019). Trains and tests all with each seed, and ends with one table, accuracy, F1 and Matthews' correlation of
# each task, mean ± standard deviation over seeds, and verdicts against `alone`. The joint model knows other labels than they do, so
# that no verdict is on it.
#
# Parameters come from the environment; finished runs are skipped, so it may be interrupted and started again. The corpora
# are cut by corpus.fraction, the training posts of all arrangements alike. JOBS seeds run side by side; on two cores
# OMP_NUM_THREADS=1 JOBS=2 is the fastest way:
#
#   SEEDS="0 1 2" FRACTIONS="1.0 1.0 0.2" OUT=adapters/glue EXTRA="encoder=minilm data.dir=../shared/data" scripts/glue_study.sh
set -euo pipefail
cd "$(dirname "$0")/.."

SEEDS=${SEEDS:-0 1 2}                # one run a seed and arrangement
FRACTIONS=${FRACTIONS:-1.0 1.0 0.2}  # shares of the training posts: of CoLA, MRPC, SST-2
OUT=${OUT:-adapters/glue}            # where the saved runs go
JOBS=${JOBS:-1}                      # seeds at once
EXTRA=${EXTRA:-}                     # further overrides for every run, separated by spaces

read -ra seeds <<<"$SEEDS"
read -ra fractions <<<"$FRACTIONS"
read -ra extra <<<"$EXTRA"
tasks=(cola mrpc sst2)
f1=(f1_acceptable f1_equivalent f1_positive)  # of the label in the second place, which the joint head calls 1
((${#fractions[@]} == ${#tasks[@]})) || { echo "glue_study.sh: FRACTIONS='$FRACTIONS': expected three, as 1.0 1.0 0.2" >&2; exit 2; }

study() {  # seed
  local seed=$1 i cut=() cuts=() both joint to
  hatemtl() { uv run main.py "seed=$seed" data.leaks=drop "$@" ${extra[@]+"${extra[@]}"}; }
  for i in "${!tasks[@]}"; do
    cut+=("tasks.${tasks[$i]}.corpus.fraction=${fractions[$i]}")
    cuts+=("tasks.joint.corpus.corpora.${tasks[$i]}.fraction=${fractions[$i]}")
  done
  both=("tasks=[cola,mrpc,sst2]" "action=[train,test]" "${cut[@]}")
  hatemtl "${both[@]}" "save_path=$OUT/together_$seed"
  for i in "${!tasks[@]}"; do
    hatemtl "tasks=[${tasks[$i]}]" "action=[train,test]" "${cut[$i]}" "save_path=$OUT/alone_${seed}_${tasks[$i]}"
  done
  hatemtl "${both[@]}" "regulariser=[distil]" "regulariser.distil.teachers='$OUT/alone_${seed}_*'" "save_path=$OUT/born_again_$seed"
  joint=("tasks=[joint]" "${cuts[@]}")
  hatemtl "${joint[@]}" "save_path=$OUT/joint_$seed"
  for i in "${!tasks[@]}"; do
    to=$OUT/joint_${seed}_${tasks[$i]}
    [ -f "$to/results.csv" ] || hatemtl "${joint[@]}" action=test method=ah_load heads.load=true \
      "load_path=$OUT/joint_$seed" "tasks.joint.column=${tasks[$i]}" "save_path=$to"
    # its rows under the names that the other arrangements give them
    sed -En "s/^metric,/&/p; s/^test_joint_f1_1,/test_${tasks[$i]}_${f1[$i]},/p
      s/^test_joint_(accuracy|macro_f1|matthews),/test_${tasks[$i]}_\1,/p" "$to/results.csv" >"$to.csv"
  done
}

if [[ ${1:-} == --seed ]]; then
  study "$2"
  exit
fi
printf '%s\n' "${seeds[@]}" | xargs -P "$JOBS" -I{} "scripts/${0##*/}" --seed {}

runs=() names=()
add() { names+=("$1") && shift && runs+=("$@"); }
for seed in "${seeds[@]}"; do
  add together "$OUT/together_$seed"
  for task in "${tasks[@]}"; do add alone "$OUT/alone_${seed}_$task"; done
  for task in "${tasks[@]}"; do add joint "$OUT/joint_${seed}_$task.csv"; done
  add born_again "$OUT/born_again_$seed"
done
metrics=(--metric "*_accuracy" "*_macro_f1" "${f1[@]/#/*_}" "*_matthews")
table() { uv run analysis/table.py "${runs[@]}" --name "${names[@]}" --mean "${metrics[@]}" "$@"; }
table --format csv --output "$OUT/table.csv"
table --format org --output "$OUT/table.org"
cat "$OUT/table.org"
for task in "${tasks[@]}"; do
  uv run analysis/compare.py "$OUT/alone_*_$task" "$OUT/together_*" "$OUT/born_again_*" --name alone together born_again \
    --metric "test_${task}_accuracy" "test_${task}_macro_f1" "test_${task}_matthews" --output "$OUT/$task.org"
  cat "$OUT/$task.org"
done
