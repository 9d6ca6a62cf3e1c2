#!/usr/bin/env bash
# Merge, fuse, gate, stack or train anew? Trains LoRAs and bottlenecks on parts of the labels, puts each lot together in every
# way there is, and writes one table: macro-F1, what it kept of the parts', trained parameters, steps and seconds. All that
# put parts together start with their heads side by side and train one epoch; `single` trains as long as each part did.
#
# Parameters come from the environment; finished runs are skipped, so it may be interrupted and started again:
#
#   SEEDS="0 1 2" FRACTION=0.4 OUT=adapters/fusion_study EXTRA="encoder=minilm data.dir=../shared/data" scripts/fusion_study.sh
set -euo pipefail
cd "$(dirname "$0")/.."

SEEDS=${SEEDS:-0 1 2}
PARTS=${PARTS:-4}                    # how many parts the labels are cut into
FRACTION=${FRACTION:-1.0}            # share of the training posts
EPOCHS=${EPOCHS:-1}                  # of what puts parts together
OUT=${OUT:-adapters/fusion_study}    # where the saved runs go
EXTRA=${EXTRA:-}                     # further overrides for every run, separated by spaces

read -ra seeds <<<"$SEEDS"
read -ra extra <<<"$EXTRA"
hatemtl() {
  uv run main.py "tasks=[target]" "action=[train,test]" "tasks.target.corpus.fraction=$FRACTION" "$@" ${extra[@]+"${extra[@]}"}
}
together() {  # folder, method, sources, name, more
  local folder=$1 method=$2 sources=$3 name=$4
  shift 4
  hatemtl "method=$method" "method.sources='$folder/$sources'" heads.merge=concat "optimization.epochs=$EPOCHS" \
    "save_path=$folder/$name" "$@"
}

for seed in "${seeds[@]}"; do
  folder=$OUT/$seed
  for ((i = 1; i <= PARTS; i++)); do
    hatemtl "seed=$seed" "tasks.target.mask_pattern=$i $PARTS" "save_path=$folder/target_part_$i"
    hatemtl "seed=$seed" "tasks.target.mask_pattern=$i $PARTS" method=ah_seq_bn "save_path=$folder/bottleneck_part_$i"
  done
  hatemtl "seed=$seed" "save_path=$folder/target_single"
  together "$folder" ah_merge16 "target_part_*" ah_merge16 "seed=$seed"
  together "$folder" lora_fusion "target_part_*" lora_fusion "seed=$seed"
  together "$folder" lora_gate "target_part_*" lora_gate "seed=$seed"
  together "$folder" lora_gate "target_part_*" lora_gate_input "seed=$seed" method.input=true
  together "$folder" ah_stack "target_part_*" ah_stack "seed=$seed"
  together "$folder" ah_fusion "bottleneck_part_*" ah_fusion "seed=$seed"
  together "$folder" ah_merge16 "bottleneck_part_*" bottleneck_merge "seed=$seed"
done

# what LoRAs became, over the parts that are LoRAs; what bottlenecks became, over theirs
table() {
  uv run analysis/retention_table.py "$OUT" --part "target_part_*" --run target_single ah_merge16 "lora_*" ah_stack "$@"
  uv run analysis/retention_table.py "$OUT" --part "bottleneck_part_*" --run ah_fusion bottleneck_merge "$@"
}
table --format org | tee "$OUT/table.org"
