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

# Shapes with their pairs a step, so that the largest batches of the slowest variant fit into 80 GB.
speed=("--shapes 0.5b --batch_sizes 16,64" "--shapes 1.5b --batch_sizes 32" "--shapes 7b-lora --batch_sizes 8")
options="--steps 6 --rounds 3 --best_of 16 --max_length 512"
memory="0.5b 1.5b"
training=()
if [ -n "$tiny" ]; then
  speed=("--shapes tiny --batch_sizes 4")
  options="--steps 1 --rounds 1 --best_of 4 --scored 16 --max_length 512"
  memory="tiny"
  training=(--max_steps 2)
fi
if [ "$device" = cpu ]; then
  training+=(--use_cpu true)
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
part 75 "Quickstart" bash -c 'quickstart rm-float32 "$@"' _ "${training[@]}"
if [ "$device" = cuda ]; then
  part 75 "Quickstart in bf16" bash -c 'quickstart rm-bf16 --bf16 true "$@"' _ "${training[@]}"
fi
for shape in "${speed[@]}"; do
  part 100 "Speed: $shape" "$PYTHON" benchmarks/speed.py --device "$device" --pairs "$PAIRS" $shape $options
done
part 60 "Memory" "$PYTHON" benchmarks/memory.py --measure --device "$device" --shapes $memory

echo
if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed: %s\n' "${failed[@]}"
  exit 1
fi
echo "all parts passed"
