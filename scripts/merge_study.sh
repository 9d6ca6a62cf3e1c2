#!/usr/bin/env bash
# What is left of the parts once they are merged? Trains adapters on parts of the labels and one on all of them, merges the
# parts in every way, with four kinds of training afterwards, tests all, and writes a table and a plot of retention: merged
# over partitioned macro-F1. With every seed:
#
#   none    the parts' heads side by side, nothing trained          refit  heads fitted in one pass, nothing else moved
#   heads   the former, then one epoch of the heads                 joint  the latter, then one epoch of everything
#
# Parameters come from the environment; finished runs are skipped, so it may be interrupted and started again:
#
#   SEEDS="0 1 2" FRACTION=0.4 OUT=adapters/merge_study EXTRA="encoder=minilm data.dir=../shared/data" scripts/merge_study.sh
set -euo pipefail
cd "$(dirname "$0")/.."

SEEDS=${SEEDS:-0 1 2}
PARTS=${PARTS:-4}                    # how many parts the labels are cut into
FRACTION=${FRACTION:-1.0}            # share of the training posts
OUT=${OUT:-adapters/merge_study}     # where the saved runs go
EXTRA=${EXTRA:-}                     # further overrides for every run, separated by spaces
# The merges, each an option of the group `merge` and, after commas, keys of it; as many parts as there are make λ = 1/n the mean.
MERGES=${MERGES:-mean linear task_arithmetic,scale=0.5 task_arithmetic,scale=0.75 task_arithmetic,scale=1.0 ties magnitude
  breadcrumbs dare_linear dare_ties della knots core_space tsv_m iso_c iso_cts lego regmean fisher learned
  learned,loss=0,entropy=1
  learned,loss=0,error=1,search=cmaes,rate=0.2,steps=5,posts=256}
TRAINED=${TRAINED:-mean ties tsv_m task_arithmetic,scale=0.5}  # those that are trained afterwards too

read -ra seeds <<<"$SEEDS"
read -ra merges <<<"$(tr '\n' ' ' <<<"$MERGES")"
read -ra trained <<<"$TRAINED"
read -ra extra <<<"$EXTRA"
hatemtl() { uv run main.py "$@" "tasks=[target]" "tasks.target.corpus.fraction=$FRACTION" ${extra[@]+"${extra[@]}"}; }

training() {  # kind
  case $1 in
    none) echo heads.merge=concat optimization.epochs=0 ;;
    refit) echo heads.merge=refit optimization.epochs=0 ;;
    heads) echo heads.merge=concat optimization.epochs=0 optimization.heads_first=1 ;;
    joint) echo heads.merge=refit optimization.epochs=1 ;;
  esac
}

after() {  # seed, kind of training, merges: those without keys of their own in one process
  local seed=$1 kind=$2 plain=() spec key options training
  read -ra training <<<"$(training "$kind")"
  shift 2
  merge=("seed=$seed" "action=[train,test]" method=ah_merge16 "method.sources='$OUT/$seed/target_part_*'" "${training[@]}")
  for spec in "$@"; do
    if [[ $spec != *,* ]]; then
      plain+=("$spec")
      continue
    fi
    IFS=, read -ra options <<<"${spec#*,}"
    hatemtl "${merge[@]}" "merge=${spec%%,*}" "${options[@]/#/merge.}" \
      "save_path=$OUT/$seed/$(tr -cs 'a-zA-Z0-9.\n' _ <<<"$spec")-$kind"
  done
  ((${#plain[@]})) || return 0
  hatemtl -m "${merge[@]}" "merge=$(IFS=,; echo "${plain[*]}")" "save_path=$OUT/$seed/\${hydra:runtime.choices.merge}-$kind"
}

for seed in "${seeds[@]}"; do
  for ((i = 1; i <= PARTS; i++)); do
    hatemtl "seed=$seed" "action=[train,test]" "tasks.target.mask_pattern=$i $PARTS" "save_path=$OUT/$seed/target_part_$i"
  done
  hatemtl "seed=$seed" "action=[train,test]" "save_path=$OUT/$seed/target_single"
  after "$seed" none "${merges[@]}"
  after "$seed" refit "${merges[@]}"
  after "$seed" heads "${trained[@]}"
  after "$seed" joint "${trained[@]}"
done

table() { uv run analysis/retention_table.py "$OUT" "$@"; }
table --format org --output "$OUT/table.org"
table --format csv --output "$OUT/table.csv"
table --wide --format org --output "$OUT/wide.org"
table --wide --plot "$OUT/retention.png"
