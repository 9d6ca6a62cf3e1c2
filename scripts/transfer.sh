#!/usr/bin/env bash
# What does a model know of hate speech beyond its own corpus? Trains on each of several corpora with every seed, tests each run
# on the test split of all, and writes one table: accuracy and macro-F1, a row a corpus that is tested, a column one that is
# trained on, mean ± standard deviation over seeds.
#
# One task, hateful or not, whatever a corpus calls it: below stand each corpus' column and which of its labels count as which
# (hate speech against all else, as HateCheck's authors join them). COLUMN_name and LABELS_name in the environment say
# otherwise, or add a corpus of conf/corpus/. Posts of one corpus may stand in another: data.leaks sees those of one run alone.
#
# Parameters come from the environment; finished runs are skipped, so it may be interrupted and started again:
#
#   TRAIN="hatexplain davidson hateval ethos" TEST="hatexplain davidson hateval ethos hatecheck" SEEDS="0 1 2" \
#     LABELS_davidson="{not_hateful:[neither],hateful:[hate,offensive]}" OUT=adapters/transfer \
#     EXTRA="encoder=minilm data.dir=../shared/data" scripts/transfer.sh
set -euo pipefail
cd "$(dirname "$0")/.."

TRAIN=${TRAIN:-hatexplain davidson hateval ethos}
TEST=${TEST:-$TRAIN hatecheck}
SEEDS=${SEEDS:-0 1 2}
OUT=${OUT:-adapters/transfer}  # where the saved runs go
EXTRA=${EXTRA:-}               # further overrides for every training, separated by spaces
EXTRA_TEST=${EXTRA_TEST:-}     # and for every test on another corpus, which knows the run's encoder and data.dir

yes_no="{not_hateful:[not_hate],hateful:[hate]}"
: "${LABELS_hatexplain:={not_hateful:[normal,offensive],hateful:[hatespeech]\}}"
: "${LABELS_davidson:={not_hateful:[neither,offensive],hateful:[hate]\}}"
: "${LABELS_founta:={not_hateful:[normal,abusive,spam],hateful:[hateful]\}}"
: "${LABELS_hatecheck:={not_hateful:[non_hateful],hateful:[hateful]\}}"
: "${COLUMN_hateval:=hate}" "${LABELS_hateval:=$yes_no}" "${COLUMN_ethos:=hate}" "${LABELS_ethos:=$yes_no}"

read -ra trained <<<"$TRAIN"
read -ra tested <<<"$TEST"
read -ra seeds <<<"$SEEDS"
read -ra extra <<<"$EXTRA"
read -ra extra_test <<<"$EXTRA_TEST"

on() {  # corpus: what makes the task read it, in the array `words`
  local column=COLUMN_$1 labels=LABELS_$1
  [ -n "${!labels:-}" ] || { echo "transfer.sh: LABELS_$1={not_hateful:[...],hateful:[...]}: expected it to be set" >&2; exit 2; }
  words=("corpus@tasks.label.corpus=$1" "tasks.label.column=${!column:-label}" "tasks.label.labels=${!labels}")
}

for corpus in "${trained[@]}" "${tested[@]}"; do on "$corpus"; done  # what is missing is told before anything is trained
runs=() names=()
for from in "${trained[@]}"; do
  for seed in "${seeds[@]}"; do
    run=$OUT/${from}_$seed
    on "$from"
    uv run main.py "tasks=[label]" "${words[@]}" "seed=$seed" data.leaks=drop "action=[train,test]" "save_path=$run" \
      ${extra[@]+"${extra[@]}"}
    echo metric,value >"$run.csv"
    for to in "${tested[@]}"; do
      folder=$run
      if [ "$to" != "$from" ]; then
        folder=$OUT/${from}_${seed}_on_$to
        on "$to"
        [ -f "$folder/results.csv" ] || uv run main.py "tasks=[label]" action=test "load_path=$run" "save_path=$folder" \
          "${words[@]}" ${extra_test[@]+"${extra_test[@]}"}
      fi
      sed -En "s/^test_label_(accuracy|macro_f1),/test_${to}_\1,/p" "$folder/results.csv" >>"$run.csv"
    done
    runs+=("$run.csv") names+=("$from")
  done
done

table() { uv run analysis/table.py "${runs[@]}" --name "${names[@]}" --mean "$@"; }
table --format csv --output "$OUT/table.csv"
table --format org --output "$OUT/table.org"
cat "$OUT/table.org"
