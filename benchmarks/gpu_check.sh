#!/usr/bin/env bash
# Checks on a machine with a GPU, in some ten minutes, that a run is there what it is on a CPU: the same scores in float32, the
# same after kill -9 and the same command again, and by two processes where there are two GPUs, each with the whole encoder or
# with half of it, or else by two runs side by side on the one; then prints its throughput.
# Made-up posts, no network. With --dry all on the CPU, to see that the script itself is whole. Exits with 1 where scores differ.
#
#   OUT=/tmp/gpu_check benchmarks/gpu_check.sh [--dry]
set -euo pipefail
cd "$(dirname "$0")/.."

OUT=${OUT:-adapters/gpu_check}   # a folder that is not there yet
PYTHON=${PYTHON:-uv run python}
SIZE=${SIZE:-1000}               # made-up posts
if [[ -e "$OUT" ]]; then
  echo "OUT=$OUT is there already; remove it, or give another" >&2
  exit 2
fi
if [[ "${1:-}" == --dry ]]; then
  there=cpu gpus=2
else
  there=gpu gpus=$(nvidia-smi -L | wc -l)
fi
posts=("tasks=[label,target]" corpus@tasks.label.corpus=sample corpus@tasks.target.corpus=sample
  "tasks.label.corpus.size=$SIZE" "tasks.target.corpus.size=$SIZE")
# no dropout, whose places every device draws for itself
exact=(encoder=tiny trainer.precision=32 trainer.compile=false tasks.label.head.dropout=0 tasks.target.head.dropout=0
  optimization.epochs=3 "action=[train,test]")

main() { # FOLDER WORDS: a run
  $PYTHON main.py "${posts[@]}" "${@:2}" "save_path=$OUT/$1" >>"$OUT/log.txt" 2>&1
}

same() { # WHAT A B LIMIT: compares the scores of two tests, post by post
  $PYTHON - "$1" "$OUT/$2" "$OUT/$3" "$4" <<'PY'
import sys

import numpy as np
import pandas as pd

what, one, two, limit = sys.argv[1:]
a, b = (pd.read_parquet(f"{run}/predictions.parquet").sort_values(["task", "post_id"], kind="stable") for run in (one, two))
alike = [*a.post_id] == [*b.post_id] and [*a.task] == [*b.task]
most = max(float(np.abs(np.subtract(x, y)).max()) for x, y in zip(a.scores, b.scores)) if alike else float("nan")
well = most <= float(limit)
print(f"{what}: scores differ by {most:.1e} at most, {limit} allowed: {'well' if well else 'WRONG'}")
sys.exit(not well)
PY
}

mkdir -p "$OUT"
failed=0
main cpu "${exact[@]}" trainer.accelerator=cpu
main "one" "${exact[@]}" trainer.accelerator=$there
# a processor adds in another order than a GPU; TF32 would differ by more
same "float32, $there against cpu" cpu one 1e-3 || failed=1

$PYTHON main.py "${posts[@]}" "${exact[@]}" trainer.accelerator=$there "save_path=$OUT/resumed" >>"$OUT/log.txt" 2>&1 &
run=$!
until [[ -e "$OUT/.resumed.unfinished/last.ckpt" ]] || ! kill -0 $run 2>/dev/null; do sleep 0.1; done
pkill -9 -P $run 2>/dev/null || true # where uv started it
kill -9 $run 2>/dev/null || true
wait $run 2>/dev/null || true
[[ -e "$OUT/resumed" ]] && echo "note: the run was over before it could be killed; try SIZE=$((4 * SIZE))"
main resumed "${exact[@]}" trainer.accelerator=$there
same "killed and resumed" one resumed 1e-5 || failed=1

if ((gpus >= 2)); then
  main two "${exact[@]}" trainer.accelerator=$there trainer.devices=2
  same "two processes" one two 1e-4 || failed=1
  main split "${exact[@]}" trainer.accelerator=$there trainer.devices=2 trainer.strategy=fsdp
  same "two processes, the encoder split" one split 1e-4 || failed=1
else
  echo "two processes: not tried, there is one GPU"
  main side "${exact[@]}" -m method.rank=8,16 trainer.accelerator=$there launcher=local launcher.jobs=2
  same "two runs side by side on one GPU" one side/rank=16 1e-5 || failed=1
fi

main throughput encoder=minilm optimization.epochs=2 trainer.accelerator=$there
$PYTHON - "$OUT/throughput/run.json" <<'PY'
import json
import sys

run = json.load(open(sys.argv[1]))
print(f"throughput: {run['examples_per_second']:.0f} posts/s, {run['tokens_per_second']:.0f} tokens/s, {run['precision']}, {run['machine']}")
PY
exit $failed
