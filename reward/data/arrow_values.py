"""Values of Arrow tables as datasets means them: the names of classes, and values from their JSON.

    columns = encoded_columns(schema.metadata)
    row = {**row, "winner": decoded(row["winner"], columns["winner"])}

datasets stores the number of a class (ClassLabel), and JSON where values are of mixed types (Json):
a list of messages may be a list of texts. What they stand for is in the metadata of the schema.
"""

import json
from typing import Any

from reward.data.json_values import json_value

Feature = dict[str, Any]  # the type of a column, as datasets writes it into a schema
ENCODED = ("ClassLabel", "Json")
LISTS = ("List", "LargeList", "Sequence")


def encoded_columns(metadata: dict[bytes, bytes] | None) -> dict[str, Feature]:
    """The columns that hold encoded values, at whatever depth.

    Args:
        metadata: Of the schema of an Arrow table. Tables that datasets has not written have none.
    """
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return encoded_features(features)
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}


def encoded_features(features: dict[str, Feature]) -> dict[str, Feature]:
    """Those of the columns' types that have an encoded one inside."""
    found = {}
    for column, feature in features.items():
        text = json.dumps(feature, default=str)
        if any(f'"_type": "{kind}"' in text for kind in ENCODED):
            found[column] = feature
    return found


def decoded(value: Any, feature: Feature, kinds: tuple[str, ...] = ENCODED) -> Any:
    """The value that is meant.

    Args:
        value: As Arrow holds it.
        feature: Its type.
        kinds: The types that are to be decoded. Rows of `datasets.Dataset` need ClassLabel alone.

    Raises:
        ValueError: A text that should be JSON is none.
    """
    kind = feature.get("_type")
    if kind in LISTS and isinstance(value, list):
        return [decoded(item, feature["feature"], kinds) for item in value]
    if not isinstance(kind, str) and isinstance(value, dict):
        return {
            key: decoded(item, feature[key], kinds) if key in feature else item
            for key, item in value.items()
        }
    if kind not in kinds:
        return value
    if kind == "ClassLabel" and isinstance(value, int):
        return _name_of_class(value, feature["names"])
    if kind == "Json" and isinstance(value, str) and feature.get("decode", True):
        return json_value(value)
    return value


def without_padding(row: dict, encoded: dict[str, Feature]) -> dict:
    """The row without the nulls that Arrow adds inside of its cells.

    Arrow gives every mapping of a column the same keys. In tools and in the arguments of tool calls
    a chat template would write those of all the others, as `"city": null`.

    Args:
        row: The row. Its own columns stay, whatever they hold.
        encoded: The columns with encoded values, whose JSON has no padding.
    """
    return {
        name: value if name in encoded else _without_nulls(value) for name, value in row.items()
    }


def _without_nulls(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def _name_of_class(number: int, names: list[str]) -> str | None:
    """The name of a class. Which number stands for which side, only the names tell; -1 is none."""
    if 0 <= number < len(names):
        return names[number]
    return None
