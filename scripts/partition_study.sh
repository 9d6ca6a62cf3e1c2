#!/usr/bin/env bash
# Partition, merge, fuse or single: is one adapter trained on all target groups better, or adapters trained on parts of them,
# put together afterwards? For every seed trains the parts, the single adapter and what the parts become, and tests all:
#
#   target_single  one adapter for all groups                target_merge  the parts' mean, trained on with a long warm-up
#   target_refit   the parts' mean, heads fitted to it in one pass, then one epoch
#   target_fusion  the parts side by side, attended to by group (lora_fusion), one epoch
#
# Parameters come from the environment; finished runs are skipped, so it may be interrupted and started again. JOBS seeds run
# side by side; on two cores OMP_NUM_THREADS=1 JOBS=2 is the fastest way:
#
#   SEEDS="0 1 2 3 4" PARTS=4 WARMUP=15 OUT=adapters/small/lora16 EXTRA="encoder=minilm data.dir=../shared/data" scripts/partition_study.sh
set -euo pipefail
cd "$(dirname "$0")/.."

SEEDS=${SEEDS:-0 1 2 3 4}
PARTS=${PARTS:-4}                  # how many parts the labels are cut into
TASK=${TASK:-target}               # the multilabel task
WARMUP=${WARMUP:-15}               # epochs of warm-up of target_merge
OUT=${OUT:-adapters/small/lora16}  # where the saved runs go, a folder a seed
JOBS=${JOBS:-1}                    # seeds at once
EXTRA=${EXTRA:-}                   # further overrides for every run, separated by spaces

read -ra extra <<<"$EXTRA"
read -ra seeds <<<"$SEEDS"

study() {  # seed
  local seed=$1 folder=$OUT/$1 i
  hatemtl() { uv run main.py "tasks=[$TASK]" "seed=$seed" data.leaks=drop "action=[train,test]" "$@" ${extra[@]+"${extra[@]}"}; }
  together() { hatemtl "method.sources='$folder/${TASK}_part_*'" "$@"; }
  for ((i = 1; i <= PARTS; i++)); do
    hatemtl "tasks.$TASK.mask_pattern=$i $PARTS" "save_path=$folder/${TASK}_part_$i"
  done
  hatemtl "save_path=$folder/${TASK}_single"
  together method=ah_merge16 heads.merge=refit optimization.epochs=1 "save_path=$folder/${TASK}_refit"
  together method=lora_fusion heads.merge=concat optimization.epochs=1 "save_path=$folder/${TASK}_fusion"
  together method=ah_merge16 "optimization.warmup=$WARMUP" "save_path=$folder/${TASK}_merge"
}

if [[ ${1:-} == --seed ]]; then
  study "$2"
  exit
fi
printf '%s\n' "${seeds[@]}" | xargs -P "$JOBS" -I{} "scripts/${0##*/}" --seed {}

verdicts() {
  uv run analysis/compare.py "$OUT/*/${TASK}_single" "$OUT/*/${TASK}_part_*" "$OUT/*/${TASK}_refit" "$OUT/*/${TASK}_fusion" \
    "$OUT/*/${TASK}_merge" --name single partitioned refitted fused merged \
    --metric "test_${TASK}_macro_f1" "test_${TASK}_micro_f1" "$@"
}
costs() { uv run analysis/retention_table.py "$OUT" --part "${TASK}_part_*" --single "${TASK}_single" --run "${TASK}_*" "$@"; }
verdicts --output "$OUT/verdicts.org"
costs --output "$OUT/costs.org"
cat "$OUT/verdicts.org" "$OUT/costs.org"
