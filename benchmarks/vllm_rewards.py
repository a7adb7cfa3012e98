"""Score token ids with vLLM, in its own Python, as benchmarks/peer_vllm.py asks for.

It takes a checkpoint's folder, and `--eager` for no torch.compile. For each line that comes in, a
JSON list of texts' token ids, a line of JSON goes out: the process's own CPU seconds, and the
rewards.
"""

import json
import os
import sys
import time

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in this process, whose time is taken
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}

from vllm import LLM, PoolingParams


def main(checkpoint: str) -> None:
    llm = LLM(
        model=checkpoint,
        runner="pooling",
        dtype="float32",
        max_model_len=2048,
        max_num_batched_tokens=8192,
        enable_prefix_caching=True,
        enforce_eager="--eager" in sys.argv,
    )
    print("ready", flush=True)
    for line in sys.stdin:
        prompts = [{"prompt_token_ids": ids} for ids in json.loads(line)]
        llm.reset_prefix_cache()  # else a second round would find all of the first one's texts
        start = time.process_time()
        outputs = llm.encode(
            prompts,
            pooling_params=PoolingParams(use_activation=False),
            pooling_task="classify",
            use_tqdm=False,
        )
        seconds = time.process_time() - start
        rewards = [output.outputs.data.item() for output in outputs]
        print(json.dumps({"seconds": seconds, "rewards": rewards}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
