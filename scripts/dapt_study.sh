#!/usr/bin/env bash
# Adapt to the domain first? An adapter learns to guess masked tokens of posts whose labels nobody reads; then (a) the same
# adapter goes on to classification, (b) a new one is stacked on it, frozen, or (c) a new one starts without it. By amount of
# text, amount of labelled posts and kind of adapter. Trains and tests all with each seed, and writes one table: loss on
# masked tokens before and after, macro-F1 of the three ways, and what each training cost.
#
# "Before" is the encoder as it was pretrained, under a masked head trained on the same text: an adapter whose learning rate
# is 0. So what differs between before and after is the adapter alone.
#
# Parameters come from the environment; finished runs are skipped, so it may be interrupted and started again:
#
#   TEXTS="0.25 1.0" LABELLED="0.05 1.0" OUT=adapters/dapt EXTRA="encoder=minilm data.dir=../shared/data" scripts/dapt_study.sh
set -euo pipefail
cd "$(dirname "$0")/.."

SEEDS=${SEEDS:-0}               # one run a seed, amount, kind and way
KINDS=${KINDS:-ah_lora16}       # AdapterHub's methods, separated by spaces
TEXTS=${TEXTS:-0.25 1.0}        # shares of the training posts that are read as text
LABELLED=${LABELLED:-0.05 1.0}  # shares of the training posts that are read with their labels
CORPUS=${CORPUS:-hatexplain}    # of text and labels
TASK=${TASK:-label}             # what is classified
OUT=${OUT:-adapters/dapt}       # where the saved runs go
EXTRA=${EXTRA:-}                # further overrides for every run, separated by spaces

read -ra seeds <<<"$SEEDS"
read -ra kinds <<<"$KINDS"
read -ra texts <<<"$TEXTS"
read -ra labelled <<<"$LABELLED"
read -ra extra <<<"$EXTRA"
hatemtl() { uv run main.py "action=[train,test]" "$@" ${extra[@]+"${extra[@]}"}; }
masked() { hatemtl "tasks=[mlm]" "corpus@tasks.mlm.corpus=$CORPUS" "$@"; }
classified() { hatemtl "tasks=[$TASK]" "corpus@tasks.$TASK.corpus=$CORPUS" "$@"; }

for seed in "${seeds[@]}"; do
  for text in "${texts[@]}"; do
    read_text=("seed=$seed" "tasks.mlm.corpus.fraction=$text")
    masked "${read_text[@]}" method=ah_lora16 optimization.encoder_lr=0 "save_path=$OUT/text_${text}_${seed}_before"
    for kind in "${kinds[@]}"; do
      masked "${read_text[@]}" "method=$kind" "save_path=$OUT/${kind}_text_${text}_${seed}"
    done
  done
  for amount in "${labelled[@]}"; do
    learn=("seed=$seed" "tasks.$TASK.corpus.fraction=$amount")
    for kind in "${kinds[@]}"; do
      rate=$(sed -n 's/^learning_rate: \([^ ]*\).*/\1/p' "conf/method/$kind.yaml")  # one for the three ways
      classified "${learn[@]}" "method=$kind" "save_path=$OUT/${kind}_labelled_${amount}_${seed}"
      for text in "${texts[@]}"; do
        before=$OUT/${kind}_text_${text}_${seed} to=$OUT/${kind}_text_${text}_labelled_${amount}_${seed}
        classified "${learn[@]}" method=ah_load "method.learning_rate=$rate" "load_path=$before" \
          "save_path=${to}_on"
        classified "${learn[@]}" method=ah_stack "method.learning_rate=$rate" "method.sources='$before'" \
          "save_path=${to}_stacked"
      done
    done
  done
done

table() { uv run analysis/dapt_table.py "$OUT/*/results.csv" "$@"; }
table --format org --output "$OUT/table.org"
table --format csv --output "$OUT/table.csv"
table
