#!/usr/bin/env bash
# Best of n and rejection sampling: the answers that a reward model picks.
#
#     bash examples/online_loop.sh rm-out               # it leaves answers, 8 to each question
#     bash examples/best_of_n.sh rm-out loop/answers.jsonl
#
# The answers may be your own: rows of `prompt, completion`, several to a prompt. With a column `gold`,
# the true reward, the table shows what the choice does to it. To best-of-n/ (OUT) it writes
#     best.jsonl    the best answer to each question
#     kept.jsonl    the best four of those that are above the mean of their question by a standard
#                   deviation of the rewards: for supervised fine-tuning. A model that was trained
#                   without validation pairs names none; then all above the mean count
#     audit/        audit.py's report, with the curve from one answer to the best of n
set -euo pipefail

RM=${1:?usage: bash examples/best_of_n.sh RM ANSWERS}
ANSWERS=${2:?usage: bash examples/best_of_n.sh RM ANSWERS}
OUT=${OUT:-best-of-n}
HERE=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$OUT"

python "$HERE/score.py" --ckpt "$RM" --input "$ANSWERS" --output "$OUT/scored.jsonl"
python "$HERE/score.py" --scored "$OUT/scored.jsonl" --mode rank --n 1 --output "$OUT/best.jsonl"
far_above=(--min_gap 0)
if grep -qs '"reward_std"' "$RM/manifest.json"; then
  far_above=(--ckpt "$RM" --normalized --min_gap 1)
fi
python "$HERE/score.py" --scored "$OUT/scored.jsonl" --mode reject --n 4 \
  "${far_above[@]}" --output "$OUT/kept.jsonl"
python "$HERE/audit.py" --scores "$RM/audit/scores.jsonl" --completions "$OUT/scored.jsonl" \
  --output_dir "$OUT/audit" > "$OUT/audit.txt"
python "$HERE/examples/show.py" --best_of_n "$OUT/audit/audit.json"
