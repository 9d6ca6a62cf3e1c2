#!/usr/bin/env bash
# Which learning rate suits a method on few posts? Trains every method at factors of the rate that its YAML has, with one seed,
# and prints the best epoch's validation macro-F1: test posts are for what is reported.
#
# Parameters come from the environment; finished runs are skipped, so it may be interrupted and started again:
#
#   METHODS="ah_seq_bn ah_prefix" FACTORS="1 3 10" FRACTION=0.1 EXTRA="encoder=minilm data.dir=../shared/data" scripts/rate_study.sh
set -euo pipefail
cd "$(dirname "$0")/.."

METHODS=${METHODS:-ah_lora16 ah_seq_bn ah_double_seq_bn ah_par_bn ah_scaled_par_bn ah_mam ah_prefix ah_compacter ah_ia3 ah_vera
  ah_dora ah_reft ah_unipelt}
FACTORS=${FACTORS:-0.3 1 3 10 30}
FRACTION=${FRACTION:-1.0}         # share of the training posts
OUT=${OUT:-adapters/rate_study}   # where the saved runs go
EXTRA=${EXTRA:-}                  # further overrides for every run, separated by spaces

read -ra factors <<<"$FACTORS"
read -ra extra <<<"$EXTRA"
printf '%-18s %10s %s\n' method rate val_target_macro_f1
for method in $(tr '\n' ' ' <<<"$METHODS"); do
  base=$(sed -n 's/^learning_rate: *\([0-9.e-]*\).*/\1/p' "conf/method/$method.yaml")
  for factor in "${factors[@]}"; do
    rate=$(awk -v a="$base" -v b="$factor" 'BEGIN {printf "%.2g", a * b}')
    uv run main.py "tasks=[target]" "tasks.target.corpus.fraction=$FRACTION" "method=$method" "method.learning_rate=$rate" \
      "save_path=$OUT/$method-$rate" ${extra[@]+"${extra[@]}"} >/dev/null
    printf '%-18s %10s %s\n' "$method" "$rate" "$(sed -n 's/^val_target_macro_f1,//p' "$OUT/$method-$rate/results.csv")"
  done
done
