"""Answers of a language model to the prompts of an audit, several to each: for best of n.

    python audit.py --ckpt rm-out
    python examples/sample.py --model google/gemma-3-270m --prompts rm-out/audit/scores.jsonl \\
        --output samples.jsonl
    bash examples/best_of_n.sh rm-out samples.jsonl

The prompts are rows with a `prompt` of messages, each prompt once. A model without a chat template
goes on with the transcript "Human: ... Assistant:", and its answer ends where it would speak for
the human. A row is `prompt, completion` as messages; an empty answer is kept, and counted.
"""

import argparse
import json
from collections.abc import Iterator

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

SPEAKERS = {"user": "Human", "assistant": "Assistant", "system": "System"}
NEXT_TURN = "\n\nHuman:"


def main() -> None:
    args = parse_arguments()
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(args.model).eval()
    prompts = different_prompts(args.prompts)[: args.count]
    empty = 0
    with open(args.output, "w", encoding="utf-8") as file:
        for prompt in prompts:
            for text in answers(model, tokenizer, prompt, args):
                empty += not text
                message = {"role": "assistant", "content": text}
                file.write(json.dumps({"prompt": prompt, "completion": [message]}) + "\n")
    print(
        f"{args.model}: {args.n} answers to each of {len(prompts)} prompts, {empty} of them empty"
    )


def different_prompts(path: str) -> list[list[dict]]:
    """The prompts of a file of rows, each of them once, in the file's order."""
    prompts = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            prompt = json.loads(line)["prompt"]
            prompts.setdefault(json.dumps(prompt), prompt)
    return list(prompts.values())


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[dict],
    args: argparse.Namespace,
) -> Iterator[str]:
    """Sample `args.n` answers to one prompt from the whole distribution."""
    ends = []  # a chat model ends its turn by a token of its own
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    else:
        inputs = tokenizer(transcript(prompt), return_tensors="pt")
        ends = [NEXT_TURN]
    with torch.inference_mode():
        tokens = model.generate(
            **inputs,
            do_sample=True,
            temperature=args.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=args.max_new_tokens,
            num_return_sequences=args.n,
            stop_strings=ends or None,
            tokenizer=tokenizer,
        )
    new_tokens = tokens[:, inputs["input_ids"].shape[1] :]
    for text in tokenizer.batch_decode(new_tokens, skip_special_tokens=True):
        for end in ends:
            text = text.split(end)[0]
        yield text.strip()


def transcript(prompt: list[dict]) -> str:
    """A conversation as HH-RLHF writes it, up to where the assistant speaks."""
    turns = []
    for message in prompt:
        role = message["role"]
        turns.append(f"{SPEAKERS.get(role, role.capitalize())}: {message['content']}")
    return "\n\n".join([*turns, "Assistant:"])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="a causal language model: a folder or a Hub id")
    add("--prompts", required=True, help="rows with a `prompt` of messages")
    add("--output", required=True, help="file of answers to write")
    add("--count", type=int, default=64, help="how many prompts are answered")
    add("--n", type=int, default=16, help="answers to a prompt")
    add("--temperature", type=float, default=1.0)
    add("--max_new_tokens", type=int, default=96)
    add("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
