"""The saved template as it was until November 2026, with a loop over all control tokens.

Checkpoints with it keep it, and the template of today must give the same texts.
"""

import json

from transformers import PreTrainedTokenizerBase

from reward.data.encoding import TEXT_START

EARLIER_HEAD = """\
{%- set rm_control = CONTROL_TOKENS -%}
{%- set rm_ns = namespace(messages=[], text='') -%}
{%- for rm_message in messages -%}
{%- if rm_message.content is string -%}
{%- set rm_ns.text = rm_message.content -%}
{%- for rm_token in rm_control -%}
{%- if rm_token in rm_ns.text -%}
{%- set rm_ns.text = rm_ns.text.replace(rm_token, rm_token[0] ~ ' ' ~ rm_token[1:]) -%}
{%- endif -%}
{%- endfor -%}
{%- set rm_ns.messages = rm_ns.messages + [dict(rm_message, content=rm_ns.text)] -%}
{%- else -%}
{%- set rm_ns.messages = rm_ns.messages + [rm_message] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = rm_ns.messages -%}
"""


def earlier_order(tokens: set[str]) -> list[str]:
    """The tokens in the order in which they were parted."""
    in_order = sorted(token for token in tokens if len(token) > 1)
    return sorted(in_order, key=len, reverse=True)


def part_as_earlier(text: str, tokens: set[str]) -> str:
    """Part each token in turn."""
    for token in earlier_order(tokens):
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def earlier_head(tokens: set[str]) -> str:
    """The start of the earlier template for a tokenizer with these control tokens."""
    listed = json.dumps(earlier_order(tokens), ensure_ascii=False)
    return EARLIER_HEAD.replace("CONTROL_TOKENS", listed)


def earlier_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template that a prepared tokenizer would have been given then."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    _, text = tokenizer.chat_template.split(TEXT_START)
    return earlier_head(special | {tokenizer.pad_token}) + TEXT_START + text
