#!/usr/bin/env bash
# What does each regulariser gain, where there are many posts and where there are few? Trains the tasks on shares of their
# training posts, without a regulariser and with each, with every seed, tests all, and ends with verdicts against those without,
# a table a share and task. What a regulariser costs a step, benchmarks/objectives.py tells.
#
#   none    no regulariser; of its own share and seed it also teaches distil (born again)
#   dropout none, with dropout in the encoder's body: r_drop needs it, and has a table against this one too
#
# A regulariser is an option of the group `regulariser` and, after commas, keys of it. By default adversarial_task guesses which
# of the two corpora a post is of, and rationale_attention needs the task rationale. Parameters come from the environment;
# finished runs are skipped, so it may be interrupted and started again. JOBS seeds run side by side; on two cores
# OMP_NUM_THREADS=1 JOBS=2 is the fastest way:
#
#   TASKS=label,rationale,davidson REGULARISERS="vat ema rationale_attention,kind=as_shipped,weight=100" SHARES="1.0 0.1" \
#     SEEDS="0 1 2" EXTRA="encoder=minilm data.dir=../shared/data" OUT=adapters/regularisers scripts/regulariser_study.sh
set -euo pipefail
cd "$(dirname "$0")/.."

ALL="r_drop vat freelb smart proximal adversarial_task distil ema rationale_attention"
TASKS=${TASKS:-label,rationale,davidson}
REGULARISERS=${REGULARISERS:-$ALL}
SHARES=${SHARES:-1.0 0.1}          # of each corpus' training posts
SEEDS=${SEEDS:-0 1 2}
OUT=${OUT:-adapters/regularisers}  # where the saved runs go: a folder a share, in it one a regulariser, in it one a seed
JOBS=${JOBS:-1}                    # seeds at once
EXTRA=${EXTRA:-}                   # further overrides for every run, separated by spaces
: "${METRIC_rationale:=f1}"        # METRIC_task: by what a task is judged, where that is not macro_f1

read -ra extra <<<"$EXTRA"
read -ra regularisers <<<"$REGULARISERS"
read -ra shares <<<"$SHARES"
read -ra seeds <<<"$SEEDS"
IFS=, read -ra tasks <<<"$TASKS"
named() { tr -cs 'a-zA-Z0-9.\n' _ <<<"$1"; }
drops() { [[ " $REGULARISERS" == *" r_drop"* ]]; }

study() {  # share, seed
  local share=$1 seed=$2 folder=$OUT/$1 cut=() own keys key of
  for of in "${tasks[@]}"; do cut+=("tasks.$of.corpus.fraction=$share"); done
  train() {  # name, overrides
    uv run main.py "tasks=[$TASKS]" "${cut[@]}" "seed=$seed" data.leaks=drop "action=[train,test]" \
      "save_path=$folder/$1/$seed" ${extra[@]+"${extra[@]}"} "${@:2}"
  }
  train none
  ! drops || train dropout method.body_dropout=true
  for of in "${regularisers[@]}"; do
    IFS=, read -ra keys <<<"$of"
    own=("regulariser=[${keys[0]}]")
    for key in "${keys[@]:1}"; do own+=("regulariser.${keys[0]}.$key"); done
    case ${keys[0]} in
      r_drop) own+=(method.body_dropout=true) ;;
      distil) own+=("regulariser.distil.teachers='$folder/none/$seed'") ;;
    esac
    train "$(named "$of")" "${own[@]}"
  done
}

if [[ ${1:-} == --seed ]]; then  # share, seed
  study "$2" "$3"
  exit
fi

verdicts() {  # folder, task, names: the baseline first
  local folder=$1 own=METRIC_$2 globs=("${@:3}") metric
  metric=test_$2_${!own:-macro_f1}
  globs=("${globs[@]/#/$folder/}")
  uv run analysis/compare.py "${globs[@]/%//*}" --name "${@:3}" --metric "$metric" --output "$folder/$2_against_$3.org"
  cat "$folder/$2_against_$3.org"
}

names=() dropping=()
for of in "${regularisers[@]}"; do
  names+=("$(named "$of")")
  [[ ${of%%,*} != r_drop ]] || dropping+=("$(named "$of")")
done
for share in "${shares[@]}"; do
  printf '%s\n' "${seeds[@]}" | xargs -P "$JOBS" -I{} "scripts/${0##*/}" --seed "$share" {}
  for task in "${tasks[@]}"; do
    echo "$task, $share of the training posts:"
    verdicts "$OUT/$share" "$task" none "${names[@]}"
    ! drops || verdicts "$OUT/$share" "$task" dropout "${dropping[@]}"
  done
done
