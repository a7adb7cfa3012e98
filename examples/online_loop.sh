#!/usr/bin/env bash
# The online loop on the demonstration: a policy answers, score.py labels, DPO takes a step, again.
#
#     make quickstart && source .venv/bin/activate      # a reward model: rm-out, with its audit
#     bash examples/online_loop.sh rm-out               # or several, to compare them: rm-out rm-debiased
#
# Needs no GPU and no Hub. For each reward model it writes to loop/NAME, a number for each round:
#     answers-N.jsonl   what the policy answers, with the true reward (`gold`), which only a
#                       demonstration knows
#     scored-N.jsonl    the same with `reward`, the proxy
#     pairs-N.jsonl     the best and the worst answer to each question: what DPO learns from
#     audit-N/          audit.py's report: reward, true reward and length of the best of n
# and the picture loop/loop.png. docs/loop.md shows what comes out.
#
# Settings, from the environment:
#     OUT=loop  ROUNDS=4 (steps of DPO)  QUESTIONS=64 (of a round)  N=8 (answers to each)
#     SFT=2500 (answers that the policy learns from first)
set -euo pipefail

OUT=${OUT:-loop}
ROUNDS=${ROUNDS:-4}
QUESTIONS=${QUESTIONS:-64}
N=${N:-8}
SFT=${SFT:-2500}
HERE=$(cd "$(dirname "$0")/.." && pwd)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # more threads only cost on models so small
export TRANSFORMERS_VERBOSITY=error

[ $# -gt 0 ] || { echo "usage: bash examples/online_loop.sh RM [RM ...]" >&2; exit 2; }
for rm in "$@"; do
  [ -f "$rm/audit/scores.jsonl" ] || { echo "$rm: no audit; run audit.py --ckpt $rm" >&2; exit 2; }
done
mkdir -p "$OUT"
[ -d "$HERE/data/quickstart/model" ] || python "$HERE/data/quickstart/make.py" --model

# The policy first learns to answer, as well and as badly as the demonstration's answers are.
python "$HERE/examples/policy.py" --model "$HERE/data/quickstart/model" --sft "$SFT" \
  --save "$OUT/policy" --answers "$OUT/answers.jsonl" --questions "$QUESTIONS" --n "$N"

for rm in "$@"; do
  run=$OUT/$(basename "$rm")
  mkdir -p "$run"
  cp "$OUT/answers.jsonl" "$run/answers-0.jsonl"
  policy=$OUT/policy
  for round in $(seq 0 "$ROUNDS"); do
    if [ "$round" -gt 0 ]; then
      # A step of DPO on the last round's pairs; then the policy answers other questions.
      python "$HERE/examples/policy.py" --model "$policy" --dpo "$run/pairs-$((round - 1)).jsonl" \
        --save "$run/policy-$round" --answers "$run/answers-$round.jsonl" \
        --first $((round * QUESTIONS)) --questions "$QUESTIONS" --n "$N" --seed "$round"
      policy=$run/policy-$round
    fi
    python "$HERE/score.py" --ckpt "$rm" --input "$run/answers-$round.jsonl" \
      --output "$run/scored-$round.jsonl"
    python "$HERE/score.py" --scored "$run/scored-$round.jsonl" \
      --mode label --as pairs --output "$run/pairs-$round.jsonl"
    python "$HERE/audit.py" --scores "$rm/audit/scores.jsonl" \
      --completions "$run/scored-$round.jsonl" --output_dir "$run/audit-$round" > "$run/audit-$round.txt"
  done
done

runs=()
for rm in "$@"; do runs+=("$OUT/$(basename "$rm")"); done
python "$HERE/examples/show.py" "${runs[@]}" --picture "$OUT/loop.png"
