#!/usr/bin/env bash
# HateXplain's table: quality, bias and explanations of five ways to learn its three tasks, beside the paper's rows. For every
# seed trains and tests, and ends with the table in the paper's form and HateCheck's by functional test:
#
#   full    everything, on the label alone, as the paper does   lora      a LoRA of rank 16, likewise
#   multi   one LoRA for label, target groups and rationale     merged    three LoRAs, a task each, then one epoch of their mean
#   fused   the three side by side (lora_fusion), one epoch
#
# Parameters come from the environment; finished runs are skipped, so it may be interrupted and started again. JOBS seeds run
# side by side; on two cores OMP_NUM_THREADS=1 JOBS=2 is the fastest way:
#
#   SEEDS="0 1 2 3 4" OUT=adapters/hatexplain EXTRA="encoder=minilm data.dir=../shared/data" scripts/hatexplain_table.sh
set -euo pipefail
cd "$(dirname "$0")/.."

SEEDS=${SEEDS:-0 1 2 3 4}
OUT=${OUT:-adapters/hatexplain}  # where the saved runs go, a folder a seed
JOBS=${JOBS:-1}                  # seeds at once
EXTRA=${EXTRA:-}                 # further overrides for every run, separated by spaces
ALL=label,target,rationale
JUDGES=auroc,bias,plausibility,faithfulness,functional,calibration

read -ra extra <<<"$EXTRA"
read -ra seeds <<<"$SEEDS"

study() {  # seed
  local seed=$1 folder=$OUT/$1
  hatemtl() { uv run main.py "seed=$seed" data.leaks=drop "$@" ${extra[@]+"${extra[@]}"}; }
  together() { hatemtl "tasks=[$ALL]" "method.sources='$folder/one_*'" heads.merge=concat optimization.epochs=1 "$@"; }
  hatemtl "tasks=[label]" "save_path=$folder/one_label"  # lora
  hatemtl "tasks=[$ALL]" "save_path=$folder/multi"
  hatemtl "tasks=[rationale]" "save_path=$folder/one_rationale"
  hatemtl "tasks=[target]" "save_path=$folder/one_target"
  together method=ah_merge16 "save_path=$folder/merged"
  together method=lora_fusion "save_path=$folder/fused"
  hatemtl "tasks=[label]" method=full "save_path=$folder/full"
  for run in one_label full multi merged fused; do
    judged "$folder/$run" || hatemtl action=test "load_path=$folder/$run" "evaluations=[$JUDGES]" \
      "evaluations.plausibility.explainers=[$(explainers "$run")]" "evaluations.faithfulness.explainers=[$(explainers "$run")]"
  done
}
judged() { grep -qs "^test_label_functional_" "$1/results.csv"; }
explainers() { [[ $1 == one_label || $1 == full ]] && echo attention || echo attention,rationale; }

if [[ ${1:-} == --seed ]]; then
  study "$2"
  exit
fi
printf '%s\n' "${seeds[@]}" | xargs -P "$JOBS" -I{} "scripts/${0##*/}" --seed {}

paper() {  # the paper's columns, of explanations both protocols' and both explainers'; means over seeds and their intervals
  local explained=() of
  for of in iou_f1 token_f1 auprc comprehensiveness sufficiency; do explained+=("test_label_${of}_*"); done
  uv run analysis/table.py "$OUT/*/full" "$OUT/*/one_label" "$OUT/*/multi" "$OUT/*/merged" "$OUT/*/fused" \
    --name full lora multi merged fused --interval --metric test_label_accuracy test_label_macro_f1 test_label_auroc \
    test_label_gmb_subgroup_auc "test_label_gmb_bpsn_auc_*" "test_label_gmb_bnsp_auc_*" "${explained[@]}" "$@"
}
hatecheck() {
  uv run analysis/functional_tests.py "$OUT/*/full" "$OUT/*/one_label" "$OUT/*/multi" "$OUT/*/merged" "$OUT/*/fused" \
    --name full lora multi merged fused --mean --published "$@"
}
paper --output "$OUT/table.org"
hatecheck --output "$OUT/hatecheck.org"
cat "$OUT/table.org" "$OUT/hatecheck.org"
