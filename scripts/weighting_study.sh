#!/usr/bin/env bash
# How should one model learn several tasks: is any weighting of their losses or gradients better than a plain sum of losses
# whose fixed weights were tuned? For each set of tasks tunes the sum on validation with the first seed (one task's weight times
# or by FACTOR, the best by the unweighted mean of the tasks' metrics, and from there again, until none is better), trains it and
# every weighting with every seed, tests all, and ends with verdicts against the tuned sum, a table a task. What a weighting costs
# a step, benchmarks/objectives.py tells.
#
# Parameters come from the environment; finished runs are skipped, so it may be interrupted and started again. JOBS seeds run
# side by side; on two cores OMP_NUM_THREADS=1 JOBS=2 is the fastest way:
#
#   SETS="label,target,rationale label,davidson,hateval" WEIGHTINGS="uncertainty famo pcgrad mgda" SEEDS="0 1 2" \
#     EXTRA="encoder=minilm data.dir=../shared/data" OUT=adapters/weightings scripts/weighting_study.sh
set -euo pipefail
cd "$(dirname "$0")/.."

ALL="sum uncertainty imtl_l dwa famo random stch gls gradnorm pcgrad gradvac cagrad mgda imtl_g nash_mtl fairgrad aligned_mtl upgrad ortho_lora"
SETS=${SETS:-label,target,rationale label,davidson,hateval}
WEIGHTINGS=${WEIGHTINGS:-$ALL}
SEEDS=${SEEDS:-0 1 2}
FACTOR=${FACTOR:-3}              # by which the sum's weights are tuned, up and down
OUT=${OUT:-adapters/weightings}  # where the saved runs go: a folder a set, in it one a weighting, in it one a seed
JOBS=${JOBS:-1}                  # seeds at once
EXTRA=${EXTRA:-}                 # further overrides for every run, separated by spaces
: "${METRIC_rationale:=f1}"      # METRIC_task: by what a task is tuned and judged, where that is not macro_f1: METRIC_cola=matthews

read -ra extra <<<"$EXTRA"
read -ra sets <<<"$SETS"
read -ra weightings <<<"$WEIGHTINGS"
read -ra seeds <<<"$SEEDS"

train() { uv run main.py data.leaks=drop "action=[train,test]" "$@" ${extra[@]+"${extra[@]}"}; }
metric() { local own=METRIC_$1; echo "$1_${!own:-macro_f1}"; }
score() {  # run, its tasks: the sum of their metrics on validation
  local task sum=0 found
  for task in "${@:2}"; do
    found=$(sed -n "s/^val_$(metric "$task"),//p" "$1/results.csv")
    [ -n "$found" ] || { echo "weighting_study.sh: $1 has no val_$(metric "$task"); set METRIC_$task to one it has" >&2; return 2; }
    sum=$(awk "BEGIN { print $sum + $found }")
  done
  echo "$sum"
}

weigh() {  # which task, a step of 1 or -1 from its power: what is typed, and how it is called
  local i power
  typed=() called=
  for i in "${!tasks[@]}"; do
    power=$((powers[i] + (i == $1 ? $2 : 0)))
    ((power != 0)) || continue
    weight=$(awk "BEGIN { printf \"%.4g\", $FACTOR ^ $power }")
    typed+=("tasks.${tasks[$i]}.weight=$weight") called+=+${tasks[$i]}_$weight
  done
}

if [[ ${1:-} == --seed ]]; then  # set, seed, the weights of the tuned sum
  for weighting in sum "${weightings[@]}"; do
    train "tasks=[$2]" "weighting=$weighting" "seed=$3" "save_path=$OUT/${2//,/+}/$weighting/$3"
  done
  [ -z "${4:-}" ] || train "tasks=[$2]" "seed=$3" "save_path=$OUT/${2//,/+}/tuned_sum/$3" "${@:4}"
  exit
fi

for set in "${sets[@]}"; do
  IFS=, read -ra tasks <<<"$set"
  folder=$OUT/${set//,/+}
  train "tasks=[$set]" "seed=${seeds[0]}" "save_path=$folder/sum/${seeds[0]}"
  best=$(score "$folder/sum/${seeds[0]}" "${tasks[@]}") weights=() powers=("${tasks[@]/*/0}")  # of FACTOR, a task's weight
  while :; do
    better=
    for i in "${!tasks[@]}"; do
      for step in 1 -1; do
        weigh "$i" "$step"
        [ ${#typed[@]} -gt 0 ] || continue  # which is the plain sum
        run=$folder/tuning/${called#+}
        train "tasks=[$set]" "${typed[@]}" "seed=${seeds[0]}" "save_path=$run"
        found=$(score "$run" "${tasks[@]}")
        if awk "BEGIN { exit !($found > $best) }"; then best=$found better="$i $step" weights=("${typed[@]}"); fi
      done
    done
    [ -n "$better" ] || break
    read -r i step <<<"$better"
    powers[i]=$((powers[i] + step))
  done
  echo "$set: the tuned sum has ${weights[*]:-equal weights}"
  printf '%s\n' "${seeds[@]}" | xargs -P "$JOBS" -I{} "scripts/${0##*/}" --seed "$set" {} ${weights[@]+"${weights[@]}"}
  names=(${weights[@]:+tuned_sum} sum)  # where no other weights were better, the sum is its own baseline
  for weighting in "${weightings[@]}"; do [ "$weighting" = sum ] || names+=("$weighting"); done
  globs=("${names[@]/#/$folder/}") globs=("${globs[@]/%//*}")
  for task in "${tasks[@]}"; do
    uv run analysis/compare.py "${globs[@]}" --name "${names[@]}" --metric "test_$(metric "$task")" --output "$folder/$task.org"
    cat "$folder/$task.org"
  done
done
