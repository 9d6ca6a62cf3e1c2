#!/usr/bin/env bash
# Does a machine do more with runs side by side, a core each, or with one run on all cores? Trains a run at a time with all
# cores, then as many side by side as there are cores, ROUNDS times, and prints posts a second of all runs together.
#
#   ROUNDS=3 EXTRA="data.dir=../shared/data" OUT=/tmp/side_by_side benchmarks/side_by_side.sh
set -euo pipefail
cd "$(dirname "$0")/.."

OUT=${OUT:-adapters/side_by_side}  # where the saved runs go, a folder that is not there yet
ROUNDS=${ROUNDS:-3}
JOBS=${JOBS:-$(python3 -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')}
EXTRA=${EXTRA:-}                   # further overrides for every run, separated by spaces

[ ! -e "$OUT" ] || { echo "OUT=$OUT is there already; remove it, or give another" >&2; exit 2; }
read -ra extra <<<"$EXTRA"
seeds=$(seq -s, "$JOBS")
train() {  # folder, words
  uv run main.py "tasks=[label]" encoder=minilm tasks.label.corpus.limit=2000 optimization.epochs=2 logger=csv \
    trainer.progress=false save_path="$OUT/$1" "${@:2}" ${extra[@]+"${extra[@]}"} >>"$OUT/log.txt" 2>&1
}
mkdir -p "$OUT"
for ((round = 0; round < ROUNDS; round++)); do
  train "alone_$round"
  # shellcheck disable=SC2016
  train "$round/"'${seed}' -m "seed=$seeds" launcher=local "launcher.jobs=$JOBS" launcher.threads=1
done
uv run python - "$OUT" "$ROUNDS" "$JOBS" <<'PY'
import json
import statistics
import sys
from pathlib import Path

out, rounds, jobs = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
rate = lambda path: json.loads((path / "run.json").read_text())["examples_per_second"]
ratios = []
for number in range(rounds):
    alone, together = rate(out / f"alone_{number}"), sum(map(rate, sorted(p for p in (out / str(number)).iterdir() if p.is_dir() and p.name[0] != ".")))
    ratios.append(together / alone)
    print(f"round {number}: one run with all cores {alone:.0f} posts/s, {jobs} side by side {together:.0f}, {ratios[-1]:.2f} times")
print(f"side by side: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) times the throughput of one run with all cores")
PY
