#!/usr/bin/env bash
# Is an F1 of .6 on annotators' words a ceiling, and what does the label pay for more? Trains label and rationale together in each
# arrangement, with attention drawn to the annotators' words at each λ, with every seed; tests all, with judged explanations, and
# ends with one table and verdicts against `base`: mean pooling, the union of annotators' masks, a LoRA on every layer, λ = 0.
#
# An arrangement is NAME: OVERRIDES, arrangements stand between semicolons; `leave_out` counts layers of a six-layer encoder.
# Validation and test carry the union of the masks in all of them, and the score from which a word is predicted is tuned on
# validation, since shares and majorities mark fewer words. Parameters come from the environment; finished runs are skipped, so
# it may be interrupted and started again. JOBS seeds run side by side; on two cores OMP_NUM_THREADS=1 JOBS=2 is the fastest way:
#
#   MASKS=union LAMBDAS="0.001 1 10 100" KIND=as_shipped SEEDS="0 1 2" EXTRA="encoder=minilm data.dir=../shared/data" \
#     OUT=adapters/rationales scripts/rationale_study.sh
set -euo pipefail
cd "$(dirname "$0")/.."

both() { echo "tasks.label.corpus.rationale=$1 tasks.rationale.corpus.rationale=$1"; }  # else they were two corpora
MASKS=${MASKS:-union majority soft}  # of training posts, base's first; union where dataset.json holds no more than that
ALL="cls: tasks.label.head.pooling=cls; attention: tasks.label.head.pooling=attention
  upper_layers: method.leave_out=[0,1,2]; lower_layers: method.leave_out=[3,4,5]"
for mask in ${MASKS#union}; do ALL+="; $mask: $(both "$mask")"; done
ARRANGEMENTS=${ARRANGEMENTS:-${ALL//$'\n'/;}}
LAMBDAS=${LAMBDAS:-0.001 1 10 100}  # weights of rationale_attention; base has 0
KIND=${KIND:-as_documented}        # of rationale_attention; as_shipped is what the published figures by λ were made with
SEEDS=${SEEDS:-0 1 2}
OUT=${OUT:-adapters/rationales}    # where the saved runs go: a folder an arrangement, in it one a seed
JOBS=${JOBS:-1}                    # seeds at once
EXTRA=${EXTRA:-}                   # further overrides for every run, separated by spaces

read -ra extra <<<"$EXTRA"
read -ra seeds <<<"$SEEDS"
read -ra lambdas <<<"$LAMBDAS"
IFS=';' read -ra arrangements <<<"base:;${ARRANGEMENTS//$'\n'/ }"
heads=null
[[ $KIND != as_shipped ]] || heads=[0,1,2,3,4,5]  # summed, as in that code: of twelve the sum were twice as large
for lambda in "${lambdas[@]}"; do
  arrangements+=("${KIND}_$lambda: regulariser=[rationale_attention] regulariser.rationale_attention.weight=$lambda
    regulariser.rationale_attention.kind=$KIND regulariser.rationale_attention.heads=$heads")
done
judges=("evaluations=[plausibility,faithfulness]")
for judge in plausibility faithfulness; do judges+=("evaluations.$judge.explainers=[attention,rationale]"); done

names=()
for of in "${arrangements[@]}"; do
  read -r name <<<"${of%%:*}"
  [[ $of == *:* && $name =~ ^[[:alnum:]_.-]+$ ]] ||
    { echo "rationale_study.sh: '$of': expected NAME: OVERRIDES, as in cls: tasks.label.head.pooling=cls" >&2; exit 2; }
  names+=("$name")
done

if [[ ${1:-} == --seed ]]; then
  for i in "${!arrangements[@]}"; do
    read -ra own <<<"$(tr '\n' ' ' <<<"${arrangements[$i]#*:}")"
    uv run main.py "tasks=[label,rationale]" tasks.rationale.head.threshold=tuned "seed=$2" data.leaks=drop \
      "action=[train,test]" "${judges[@]}" "save_path=$OUT/${names[$i]}/$2" ${extra[@]+"${extra[@]}"} ${own[@]+"${own[@]}"}
  done
  exit
fi
printf '%s\n' "${seeds[@]}" | xargs -P "$JOBS" -I{} "scripts/${0##*/}" --seed {}

globs=("${names[@]/#/$OUT/}") globs=("${globs[@]/%//*}")
table() {
  uv run analysis/table.py "${globs[@]}" --name "${names[@]}" --interval --metric test_rationale_f1 test_rationale_f1_mean_over_posts \
    test_label_macro_f1 test_label_accuracy "test_label_iou_f1_*" "test_label_token_f1_*" "test_label_auprc_*" \
    "test_label_comprehensiveness_*" "test_label_sufficiency_*" "$@"
}
verdicts() { uv run analysis/compare.py "${globs[@]}" --name "${names[@]}" --metric test_rationale_f1 test_label_macro_f1 "$@"; }
table --output "$OUT/table.org"
verdicts --output "$OUT/verdicts.org"
cat "$OUT/table.org" "$OUT/verdicts.org"
