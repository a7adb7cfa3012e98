#!/usr/bin/env bash
# What a GPU does with this repository, in under nine minutes: whether it is exact, how fast it is,
# how much memory it takes, and whether the quickstart works. Each part prints its table at once.
#
#     bash benchmarks/gpu.sh                                         # a CUDA GPU
#     PAIRS=data/quickstart/test.jsonl.gz bash benchmarks/gpu.sh --device cpu --tiny   # the same
#                                     # parts on a CPU, to see that they run; its numbers say nothing
#
# PAIRS   the pairs that are computed: a file, or a Hub data set (HH-RLHF's harmless-base)
# WHEELS  a folder of wheels to install first, for a machine that has PyTorch, transformers,
#         accelerate and peft and no network. This fills it, on a machine that has one:
#             pip download --no-deps -d wheels --python-version 3.12 --only-binary=:all: \
#               $(grep -E '^(transformers|tokenizers|trl|peft|datasets|huggingface_hub|datasketch)=' \
#               requirements.txt) dill multiprocess httpx2 httpcore2 truststore
# LIMIT   seconds for all parts together (530); what comes after is named as failed
# PARTS   a regular expression: the titles of the parts to run, such as 'Exactness|Memory' (all)
# OUT     the folder for the quickstart's model and report, and gpu.log (gpu-out)
set -uo pipefail
cd "$(dirname "$0")/.."

device=cuda
tiny=
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=$2; shift ;;
    --tiny) tiny=--tiny ;;
    *) echo "gpu.sh: $1 is no option; there are --device cuda|cpu and --tiny" >&2; exit 2 ;;
  esac
  shift
done
PAIRS=${PAIRS:-Anthropic/hh-rlhf}
OUT=${OUT:-gpu-out}
PYTHON=${PYTHON:-python3}
PARTS=${PARTS:-.}
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} # one process would be refused several
LIMIT=${LIMIT:-530} # seconds that all parts may take together on a GPU
mkdir -p "$OUT"
exec > >(tee "$OUT/gpu.log") 2>&1

if [ -n "${WHEELS:-}" ]; then
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --upgrade \
    --target "$OUT/site" "$WHEELS"/*.whl || exit 1
  export PYTHONPATH=$OUT/site${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONUNBUFFERED=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 TOKENIZERS_PARALLELISM=false
failed=()

part() {  # part SECONDS TITLE COMMAND...: the command, ended after so many seconds
  [[ $2 =~ $PARTS ]] || return
  echo; echo "### $2"; echo
  local start=$SECONDS seconds=$1
  if [ "$device" = cuda ] && [ $((LIMIT - SECONDS)) -lt "$seconds" ]; then
    seconds=$((LIMIT - SECONDS))
  fi
  if [ "$seconds" -le 5 ]; then
    failed+=("$2 (no time left)")
    return
  fi
  if [ "$device" = cpu ]; then
    seconds=0 # no limit
  fi
  timeout "$seconds" "${@:3}" || failed+=("$2 (status $?)")
  echo; echo "($((SECONDS - start)) s)"
}

quickstart() {  # quickstart NAME OPTIONS...: the quickstart's two commands
  "$PYTHON" data/quickstart/make.py --model \
    && "$PYTHON" train_rm.py --recipe recipes/quickstart.yaml --output_dir "$OUT/$1" --overwrite "${@:2}" \
    && "$PYTHON" audit.py --ckpt "$OUT/$1" --quick
}
export -f quickstart
export OUT PYTHON

# TRL's padded batches have to fit into 80 GB; packed ones are four times as small, so that they are
# also computed at a size that fills the GPU.
two="packed/prefix + packed"
speed() {  # speed SHAPE PAIRS OPTIONS...
  local title="Speed: $1, $2 pairs a step"
  [[ "$*" != *--liger* ]] || title+=", Liger's kernels"
  part 100 "$title" "$PYTHON" benchmarks/speed.py --device "$device" \
    --pairs "$PAIRS" --shapes "$1" --batch_sizes "$2" $options "${@:3}"
}
options="--steps 4 --rounds 3 --best_of 16 --max_length 512"
memory="0.5b 1.5b"
training=()
if [ -n "$tiny" ]; then
  options="--steps 1 --rounds 1 --best_of 4 --scored 16 --max_length 512"
  memory="tiny"
  training=(--max_steps 2)
fi
if [ "$device" = cpu ]; then
  training+=(--use_cpu true)
  options+=" --bf16"
fi

part 60 "Versions" "$PYTHON" - "$device" <<'PYTHON'
import sys

import accelerate, datasets, peft, torch, transformers, trl

for package in (torch, transformers, trl, accelerate, peft, datasets):
    print(package.__name__, package.__version__)
if sys.argv[1] == "cuda":
    print(torch.cuda.get_device_name(), "CUDA", torch.version.cuda)
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for event in (None, start, end):
        if event is not None:
            event.record()
        for _ in range(20):
            a @ a
    torch.cuda.synchronize()
    print(f"matrix product of 8,192 in bf16: {20 * 2 * 8192**3 / start.elapsed_time(end) / 1e9:.0f} TFLOP/s")
PYTHON
part 120 "Exactness" "$PYTHON" benchmarks/exactness.py --device "$device" $tiny --pairs "$PAIRS"
part 120 "Quickstart" bash -c 'quickstart rm-float32 "$@"' _ "${training[@]}"
if [ "$device" = cuda ]; then
  part 120 "Quickstart in bf16" bash -c 'quickstart rm-bf16 --bf16 true "$@"' _ "${training[@]}"
fi
part 60 "Memory" "$PYTHON" benchmarks/memory.py --measure --device "$device" --shapes $memory
if [ -n "$tiny" ]; then
  speed tiny 4
else
  speed 7b-lora 8 --scored 64
  speed 0.5b 16,32
  speed 0.5b 64 --variants "$two" --only train
  speed 1.5b 32 --variants "$two" --only train
  speed 1.5b 8
  if "$PYTHON" -c "import liger_kernel" 2> /dev/null; then
    speed 0.5b 64 --variants "$two" --only train --liger
    speed 1.5b 32 --variants "$two" --only train --liger
  fi
fi

echo
if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed: %s\n' "${failed[@]}"
  exit 1
fi
echo "all parts passed"
