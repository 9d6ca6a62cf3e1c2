#!/usr/bin/env bash
# Which of several models is better, and is the difference real? Fine-tunes each with every seed, prints mean ± standard
# deviation of accuracy and macro-F1, what the tests of analysis/compare.py say of each model against the first, and the run to
# keep: of the model with the higher mean on the test split, the one that is best by validation, so that no test post chooses
# among seeds.
#
# A model is NAME: OVERRIDES, models stand between semicolons; seeds and posts are the same for all. Parameters come from the
# environment; finished runs are skipped, so it may be interrupted and started again:
#
#   MODELS="lora: method=ah_lora16; full: method=full" TASK=frenk_binary SEEDS="0 1 2 3 4" OUT=adapters/models \
#     EXTRA="encoder=minilm" scripts/model_comparison.sh
set -euo pipefail
cd "$(dirname "$0")/.."

MODELS=${MODELS:-lora: method=ah_lora16; full: method=full}
TASK=${TASK:-frenk_binary}    # a task with one label a post
SEEDS=${SEEDS:-0 1 2 3 4}     # fine-tunings a model; of 3 and 3 no rank test can give a p below .1, of 5 and 5 none below .0079
OUT=${OUT:-adapters/models}   # where the saved runs go, a folder a model with one a seed
EXTRA=${EXTRA:-}              # further overrides for every run, separated by spaces

read -ra seeds <<<"$SEEDS"
read -ra extra <<<"$EXTRA"
IFS=';' read -ra models <<<"${MODELS//$'\n'/ }"
value() { sed -n "s/^$1,//p" "$2/results.csv"; }
metrics=("test_${TASK}_macro_f1" "test_${TASK}_accuracy")

runs=() columns=() names=() globs=() better='' highest=''
for model in "${models[@]}"; do
  read -r name <<<"${model%%:*}"
  read -ra own <<<"${model#*:}"
  [[ $model == *:* && $name =~ ^[[:alnum:]_.-]+$ ]] ||
    { echo "model_comparison.sh: MODELS: '$model': expected NAME: OVERRIDES, as in lora: method=ah_lora16" >&2; exit 2; }
  for seed in "${seeds[@]}"; do
    run=$OUT/$name/$seed
    uv run main.py "tasks=[$TASK]" "seed=$seed" data.leaks=drop "action=[train,test]" "save_path=$run" \
      ${extra[@]+"${extra[@]}"} ${own[@]+"${own[@]}"}
    runs+=("$run") columns+=("$name")
  done
  names+=("$name") globs+=("$OUT/$name/*")
  mean=$(for seed in "${seeds[@]}"; do value "${metrics[0]}" "$OUT/$name/$seed"; done | awk '{sum += $1} END {print sum / NR}')
  if [ -z "$better" ] || awk "BEGIN {exit !($mean > $highest)}"; then better=$name highest=$mean; fi
done

table() { uv run analysis/table.py "${runs[@]}" --name "${columns[@]}" --mean --metric "${metrics[@]}" "$@"; }
table --format csv --output "$OUT/table.csv"
table --format org --output "$OUT/table.org"
cat "$OUT/table.org"
uv run analysis/compare.py "${globs[@]}" --name "${names[@]}" --metric "${metrics[@]}"  # at once: p corrected for all
best=$(for seed in "${seeds[@]}"; do echo "$(value "val_${TASK}_macro_f1" "$OUT/$better/$seed") $seed"; done |
  sort -grk1,1 | head -1)
echo "higher mean ${metrics[0]}: $better ($highest); its best run by val_${TASK}_macro_f1: $OUT/$better/${best#* }"
