#!/usr/bin/env bash
# Checks on a machine with a GPU, in ten minutes, that a run is there what it is on a CPU, and measures it beside others:
#  - the scores of one saved run, tested on both, in float32 and in bf16, and those of a run trained on each;
#  - hatemtl's own layers against the libraries', in the shapes of ELECTRA-small and DeBERTa-v3-base, in float32 and in bf16;
#  - a run killed and gone on with, a run by a process group of one, which sets up what several would speak by, two runs side
#    by side on one GPU; where there are two GPUs, a run by two processes, each with the whole encoder or with half of it;
#  - posts a second and memory: of a run as users type it, and beside Hugging Face's Trainer, set up in several ways.
# Made-up posts, weights drawn at random or MiniLM's, no network. A part that fails ends no other, and each says how long it
# took. Exits with 1 where one failed, or did not end in time. With --dry all of it on the CPU, with little of everything and
# as if there were two GPUs, to see that the script itself is whole.
#
#   OUT=/tmp/gpu_check benchmarks/gpu_check.sh [--dry]
set -uo pipefail
cd "$(dirname "$0")/.."

OUT=${OUT:-adapters/gpu_check}   # a folder that is not there yet
PYTHON=${PYTHON:-uv run python}
SIZE=${SIZE:-1000}               # made-up posts of a run
LIMIT=${LIMIT:-}                 # seconds of the whole check, 600 on a GPU; what is at work then is ended
if [[ -e "$OUT" ]]; then
  echo "OUT=$OUT is there already; remove it, or give another" >&2
  exit 2
fi
case "${1:-}" in
--dry)
  there=cpu device=cpu gpus=2 LIMIT=${LIMIT:-3600}
  random="{num_hidden_layers:2,hidden_size:64,num_attention_heads:4,intermediate_size:128}"
  measure=(--rounds 1 --seconds 0 --train-posts 96 --eval-posts 128 --threads "${OMP_NUM_THREADS:-1}")
  ;;
"")
  there=gpu device=cuda gpus=$($PYTHON -m benchmarks.gpu_check gpus) LIMIT=${LIMIT:-600}
  random="{}" # the sizes of config.json
  measure=(--rounds 3 --seconds 1 --train-posts 2048 --eval-posts 4096)
  ;;
*)
  echo "$1: expected --dry, or nothing" >&2
  exit 2
  ;;
esac
if [[ ! "$gpus" =~ ^[1-9] ]]; then
  echo "torch sees no GPU here; type --dry to try the script on the CPU" >&2
  exit 2
fi
posts=("tasks=[label,target]" corpus@tasks.label.corpus=sample corpus@tasks.target.corpus=sample
  "tasks.label.corpus.size=$SIZE" "tasks.target.corpus.size=$SIZE")
# no dropout, whose places every device draws for itself; at these rates training moves scores by some 0.1
exact=("${posts[@]}" encoder=tiny trainer.compile=false tasks.label.head.dropout=0 tasks.target.head.dropout=0
  optimization.epochs=3 optimization.encoder_lr=1e-3 optimization.head_lr=1e-2 "action=[train,test]")
launched=() # what starts main.py in the place of python alone

timed() { # COMMAND...: runs it within what is left of the time
  timeout --kill-after=10 $((SECONDS < LIMIT ? LIMIT - SECONDS : 1)) "$@" &
  working=$!
  wait $working
}
trap 'kill $working 2>/dev/null; exit 130' INT TERM

run() { # FOLDER WORDS...: a run, whose log stands beside its folder
  mkdir -p "$(dirname "$OUT/$1")"
  timed $PYTHON ${launched[@]+"${launched[@]}"} main.py "${@:2}" "save_path=$OUT/$1" >>"$OUT/$1.log" 2>&1 && return
  echo "$1: ended with $? (124: for want of time); the last of $OUT/$1.log:"
  tail -n 3 "$OUT/$1.log"
  return 1
}

same() { # WHAT A B LIMIT: compares the scores of two tests, post by post
  timed $PYTHON -m benchmarks.gpu_check same "$1" "$OUT/$2" "$OUT/$3" "${@:4}"
}

failed=0
part() { # NAME FUNCTION WORDS...
  local begun=$SECONDS how=done
  ((begun < LIMIT)) && "${@:2}" || how=FAILED failed=1
  echo "- $1: $how in $((SECONDS - begun)) s, $SECONDS s of $LIMIT gone"
}

# On CPUs two orders of a sum, and the steps that follow, part scores by less than 1e-6, bf16 by 4e-3: docs/trust.org.
on_both() {
  run cpu "${exact[@]}" trainer.precision=32 trainer.accelerator=cpu || return
  # in the place of a GPU: a processor's older instructions, which add in another order
  [[ $there == cpu ]] && export ATEN_CPU_CAPABILITY=avx2
  local well=0 tested=("${posts[@]}" encoder=tiny action=test method=ah_load heads.load=true "load_path=$OUT/cpu"
    "trainer.accelerator=$there")
  run tested "${tested[@]}" trainer.precision=32 &&
    same "one saved run tested on both, float32" cpu tested 1e-4 || well=1
  run tested_bf16 "${tested[@]}" trainer.precision=bf16 &&
    same "one saved run tested on both, bf16 against float32" cpu tested_bf16 1e-2 || well=1
  run one "${exact[@]}" trainer.precision=32 "trainer.accelerator=$there" &&
    same "trained on each, float32" cpu one 1e-4 || well=1
  return $well
}

own_layers() { # ENCODER PRECISION LIMIT
  local fast well=0
  [[ -e "$OUT/shapes/$1" ]] || timed $PYTHON -m benchmarks.gpu_check encoders "$OUT/shapes" "$1" || return
  for fast in true false; do
    run "$1_$2/$fast" "${exact[@]}" "encoder=$1" "encoder.source=$OUT/shapes/$1" "encoder.random=$random" \
      "trainer.precision=$2" "trainer.fast=$fast" "trainer.accelerator=$there" || return
  done
  if grep "hatemtl's own layers" "$OUT/$1_$2/true.log"; then
    well=1 # they were left out, as this note says
  fi
  same "$1, own layers against the library's, $2" "$1_$2/true" "$1_$2/false" "$3" --other-code || well=1
  return $well
}

killed() {
  setsid $PYTHON main.py "${exact[@]}" trainer.precision=32 "trainer.accelerator=$there" "save_path=$OUT/resumed" \
    >>"$OUT/resumed.log" 2>&1 &
  working=$!
  until [[ -e "$OUT/.resumed.unfinished/last.ckpt" ]] || ! kill -0 $working 2>/dev/null || ((SECONDS >= LIMIT)); do
    sleep 0.02
  done
  kill -9 -- -$working 2>/dev/null # and what uv started
  wait $working 2>/dev/null
  if [[ ! -e "$OUT/.resumed.unfinished/last.ckpt" ]]; then
    echo "killed and gone on with: WRONG: the run ended too soon; see $OUT/resumed.log, or try SIZE=$((4 * SIZE))"
    return 1
  fi
  run resumed "${exact[@]}" trainer.precision=32 "trainer.accelerator=$there" &&
    same "killed and gone on with" one resumed 1e-5
}

group_of_one() {
  local launched=(-m torch.distributed.run --standalone --nproc-per-node=1)
  run group "${exact[@]}" trainer.precision=32 "trainer.accelerator=$there" trainer.devices=1 trainer.strategy=ddp &&
    same "a process group of one" one group 1e-5
}

side_by_side() {
  run side "${exact[@]}" trainer.precision=32 "trainer.accelerator=$there" -m method.rank=8,16 launcher=local \
    launcher.jobs=2 && same "two runs side by side" one side/rank=16 1e-5
}

two_processes() { # STRATEGY
  run "two_$1" "${exact[@]}" trainer.precision=32 "trainer.accelerator=$there" trainer.devices=2 "trainer.strategy=$1" &&
    same "two processes, $1" one "two_$1" 1e-4
}

by_the_command() {
  run whole "${posts[@]}" encoder=minilm optimization.epochs=2 "trainer.accelerator=$there" &&
    timed $PYTHON -m benchmarks.gpu_check took "$OUT/whole"
}

beside_others() {
  # the Trainer's quick start, tuned, without dropout, and beside that as Unsloth's guides have a fast LoRA
  local first=${CUDA_VISIBLE_DEVICES-0} # of several GPUs a Trainer would take all
  timed env "CUDA_VISIBLE_DEVICES=${first%%,*}" $PYTHON -m benchmarks.throughput --device $device --tasks 1 --share \
    "${measure[@]}" --out "$OUT/throughput" >"$OUT/throughput.log" 2>&1 \
    --arms trainer trainer_tuned trainer_lean trainer_fused hatemtl hatemtl_compiled hatemtl_own
  local well=$?
  if ! cat "$OUT/throughput/throughput.org" || ((well)) || grep "left out" "$OUT/throughput.log"; then
    echo "posts a second: not of all, ended with $well (124: for want of time); see $OUT/throughput.log"
    return 1
  fi
}

mkdir -p "$OUT"
part "the same on both" on_both
part "own layers, ELECTRA-small" own_layers electra_small 32 1e-4
part "own layers, ELECTRA-small, bf16" own_layers electra_small bf16 1e-2
part "own layers, DeBERTa-v3" own_layers deberta_v3_base 32 1e-4
part "own layers, DeBERTa-v3, bf16" own_layers deberta_v3_base bf16 1e-2
part "killed" killed
part "a process group of one" group_of_one
part "side by side" side_by_side
if ((gpus >= 2)); then
  part "two processes, ddp" two_processes ddp
  part "two processes, fsdp" two_processes fsdp
else
  echo "- two processes: not tried, there is one GPU"
fi
part "a run by the command" by_the_command
part "beside others" beside_others
exit $failed
