#!/usr/bin/env bash
# Adapt to the domain first? An adapter learns to guess masked tokens of posts whose labels nobody reads; then (a) the same
# adapter goes on to classification, (b) a new one is stacked on it, which stays frozen, or (c) a new one starts without it. By
# amount of text, amount of labelled posts and kind of adapter. Tells first about how long all will take, from a small sample
# of each kind; then trains and tests all with each seed, and writes two tables: loss on masked tokens before and after and
# macro-F1 of the ways, and what each training took and cost, for each per cent of text and labels.
#
# "Before" is the encoder as it was pretrained, under a masked head trained on the same text: an adapter whose learning rate
# is 0. So what differs between before and after is the adapter alone.
#
# Parameters come from the environment; finished runs are skipped, so it may be interrupted and started again:
#
#   TEXTS="0.25 1.0" LABELLED="0.05 1.0" OUT=adapters/dapt EXTRA="encoder=minilm data.dir=../shared/data" scripts/dapt_study.sh
#   KINDS="ah_par_bn,reduction_factor=2 ah_par_bn,reduction_factor=6 ah_mam ah_unipelt" TEXT_CORPUS=reviews CORPUS=imdb \
#     TASK=imdb SECOND="same seq_bn,reduction_factor=16" PER_HOUR=1.18 scripts/dapt_study.sh
set -euo pipefail
cd "$(dirname "$0")/.."

SEEDS=${SEEDS:-0}                      # one run a seed, amount, kind and way
KINDS=${KINDS:-ah_lora16}              # AdapterHub's methods, separated by spaces, each with keys of it after commas
SECOND=${SECOND:-same}                 # kinds of the new adapter of (b): same as the first, or a configuration with its keys
WAYS=${WAYS:-on stacked}               # of going on from text: on (a, one adapter), stacked (b, two)
TEXTS=${TEXTS:-0.25 1.0}               # shares of the training posts that are read as text
LABELLED=${LABELLED:-0.05 1.0}         # shares of the training posts that are read with their labels
CORPUS=${CORPUS:-hatexplain}           # of labels
TEXT_CORPUS=${TEXT_CORPUS:-$CORPUS}    # of text
TASK=${TASK:-label}                    # what is classified
OUT=${OUT:-adapters/dapt}              # where the saved runs go
PER_HOUR=${PER_HOUR:-}                 # the price of an hour of this machine
ESTIMATE=${ESTIMATE:-0.02}             # share of the training posts in the samples of the estimate; 0: none
EXTRA=${EXTRA:-}                       # further overrides for every run, separated by spaces
TEXT_EXTRA=${TEXT_EXTRA:-}             # the same for runs on text alone, as keys of TEXT_CORPUS: tasks.mlm.corpus.KEY=VALUE
LABEL_EXTRA=${LABEL_EXTRA:-}           # the same for runs on labels alone: tasks.TASK.corpus.KEY=VALUE

read -ra seeds <<<"$SEEDS"
read -ra kinds <<<"$KINDS"
read -ra seconds <<<"$SECOND"
read -ra ways <<<"$WAYS"
read -ra texts <<<"$TEXTS"
read -ra labelled <<<"$LABELLED"
read -ra extra <<<"$EXTRA"
read -ra text_extra <<<"$TEXT_EXTRA"
read -ra label_extra <<<"$LABEL_EXTRA"
for way in "${ways[@]}"; do
  [[ $way == on || $way == stacked ]] || { echo "dapt_study.sh: WAYS=$WAYS: expected on, stacked or both" >&2; exit 2; }
done
for kind in "${kinds[@]}"; do
  [[ -f conf/method/${kind%%,*}.yaml ]] || { echo "dapt_study.sh: KINDS=$KINDS: there is no method=${kind%%,*}" >&2; exit 2; }
done
hatemtl() { uv run main.py "action=[train,test]" ${PER_HOUR:+"cost.per_hour=$PER_HOUR"} "$@" ${extra[@]+"${extra[@]}"}; }
masked() { hatemtl "tasks=[mlm]" "corpus@tasks.mlm.corpus=$TEXT_CORPUS" "$@" ${text_extra[@]+"${text_extra[@]}"}; }
classified() { hatemtl "tasks=[$TASK]" "corpus@tasks.$TASK.corpus=$CORPUS" "$@" ${label_extra[@]+"${label_extra[@]}"}; }
cost() { uv run analysis/cost.py "$@" ${PER_HOUR:+--per_hour "$PER_HOUR"}; }

named() { printf %s "${1//[^a-zA-Z0-9.]/_}"; }  # a kind, in the name of a folder
method() {  # words that choose a kind: METHOD,key=value,...
  words=("method=${1%%,*}")
  if [[ $1 == *,* ]]; then
    IFS=, read -ra keys <<<"${1#*,}"
    words+=("${keys[@]/#/method.}")
  fi
}
rate_of() { sed -n 's/^learning_rate: \([^ ]*\).*/\1/p' "conf/method/$1.yaml"; }

if [[ $ESTIMATE != 0 ]]; then
  for kind in "${kinds[@]}"; do
    method "$kind"
    to=$OUT/estimate/$(named "$kind")
    masked seed=0 "tasks.mlm.corpus.fraction=$ESTIMATE" "${words[@]}" "save_path=${to}_text" >/dev/null
    classified seed=0 "tasks.$TASK.corpus.fraction=$ESTIMATE" "${words[@]}" "save_path=${to}_labelled" >/dev/null
  done
  number=0
  for way in "${ways[@]}"; do
    if [[ $way == on ]]; then number=$((number + 1)); else number=$((number + ${#seconds[@]})); fi
  done
  echo "what all of this takes, about; beside it one run of text a seed and share, before anything is adapted:"
  cost "$OUT/estimate/*" --grid --text "${texts[@]}" --labels "${labelled[@]}" --seeds "${#seeds[@]}" --ways "$number"
fi

for seed in "${seeds[@]}"; do
  for text in "${texts[@]}"; do
    read_text=("seed=$seed" "tasks.mlm.corpus.fraction=$text")
    masked "${read_text[@]}" method=ah_lora16 optimization.encoder_lr=0 "save_path=$OUT/text_${text}_${seed}_before"
    for kind in "${kinds[@]}"; do
      method "$kind"
      masked "${read_text[@]}" "${words[@]}" "save_path=$OUT/$(named "$kind")_text_${text}_${seed}"
    done
  done
  for amount in "${labelled[@]}"; do
    learn=("seed=$seed" "tasks.$TASK.corpus.fraction=$amount")
    for kind in "${kinds[@]}"; do
      method "$kind"
      name=$(named "$kind") rate=$(rate_of "${kind%%,*}")  # one for the ways
      classified "${learn[@]}" "${words[@]}" "save_path=$OUT/${name}_labelled_${amount}_${seed}"
      for text in "${texts[@]}"; do
        before=$OUT/${name}_text_${text}_${seed} to=$OUT/${name}_text_${text}_labelled_${amount}_${seed}
        for way in "${ways[@]}"; do
          if [[ $way == on ]]; then
            classified "${learn[@]}" method=ah_load "method.learning_rate=$rate" "load_path=$before" "save_path=${to}_on"
            continue
          fi
          for second in "${seconds[@]}"; do
            mine=() own=$rate
            if [[ $second != same ]]; then
              IFS=, read -ra keys <<<"config=$second"
              mine=("${keys[@]/#/method.}")
              [[ ! -f conf/method/ah_${second%%,*}.yaml ]] || own=$(rate_of "ah_${second%%,*}")
            fi
            classified "${learn[@]}" method=ah_stack "method.learning_rate=$own" "method.sources='$before'" \
              ${mine[@]+"${mine[@]}"} "save_path=${to}_stacked$([[ $second == same ]] || named "_$second")" ||
              echo "note: $second on top of $kind is left out" >&2  # the library refuses some pairs, and says why
          done
        done
      done
    done
  done
done

table() { uv run analysis/dapt_table.py "$OUT/*/results.csv" "$@"; }
table --format csv --output "$OUT/table.csv"
table --format org --output "$OUT/table.org"
cat "$OUT/table.org"
cost "$OUT/*/results.csv" --format org --output "$OUT/cost.org"
cat "$OUT/cost.org"
