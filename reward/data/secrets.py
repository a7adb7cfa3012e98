"""Secrets that people write into recipes, addresses and their environment: none is shown or saved.

What is printed passes `hide_secrets` (reward.data.streams); what is saved of a recipe passes
`without_secrets`.
"""

import os
import re

HIDDEN = "***"

# A token of the Hub, wherever it stands: in a key of another name, in an address, in a path.
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
# https://user:password@host; one slash is left where it was taken for a path
LOGIN_IN_ADDRESS = re.compile(r"(:/{1,2})[^/\s@'\"<>]+(?=@)")
# https://host/?token=...
KEY_IN_ADDRESS = re.compile(
    r"(?i)(?<=[?&])([a-z_-]*(?:token|key|secret|password|signature)[a-z_-]*=)[^&\s'\"<>]+"
)

# Keys whose value is a secret: the recipe's own, and those of `from_pretrained`.
SECRET_KEYS = ("hub_token", "token", "use_auth_token", "hf_token")
# Environment variables whose value is one: HF_TOKEN, WANDB_API_KEY, ENDPOINT_API_KEY, ...
SECRET_VARIABLE = re.compile(r"(?i).*(?:token|api_key|secret|password)")
SHORTEST_SECRET = 16  # characters: a shorter value may be a word of any text


def hide_secrets(text: str) -> str:
    """Return the text without tokens of the Hub, logins and keys in addresses.

    Values of environment variables that hold a secret are hidden, too.
    """
    for name, value in os.environ.items():
        if value in text and len(value) >= SHORTEST_SECRET and SECRET_VARIABLE.fullmatch(name):
            text = text.replace(value, HIDDEN)
    text = HUB_TOKEN.sub(f"hf_{HIDDEN}", text)
    text = LOGIN_IN_ADDRESS.sub(rf"\1{HIDDEN}", text)
    return KEY_IN_ADDRESS.sub(rf"\1{HIDDEN}", text)


def holds_secret(text: str) -> bool:
    """Return whether a text holds what `hide_secrets` would hide."""
    return hide_secrets(text) != text


def without_secrets(value: object) -> object:
    """Return a YAML value without the entries of secret keys, and without secrets in its texts."""
    if isinstance(value, dict):
        kept = {}
        for key, inner in value.items():
            if key not in SECRET_KEYS:
                kept[key] = without_secrets(inner)
        return kept
    if isinstance(value, list):
        return [without_secrets(inner) for inner in value]
    if isinstance(value, str):
        return hide_secrets(value)
    return value
