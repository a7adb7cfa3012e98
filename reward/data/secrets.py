"""Secrets that people write into recipes: nothing of ours shows one or writes one into a file."""

import re

# A token of the Hub, wherever it stands: in a key of another name, in an address, in a path.
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
HIDDEN = "hf_***"

# Keys whose value is a secret: the recipe's own, and those of `from_pretrained`.
SECRET_KEYS = ("hub_token", "token", "use_auth_token", "hf_token")


def hide_secrets(text: str) -> str:
    """Return the text with each token of the Hub replaced."""
    return HUB_TOKEN.sub(HIDDEN, text)


def without_secrets(value: object) -> object:
    """Return a YAML value without the entries of secret keys, and without tokens in its texts."""
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
