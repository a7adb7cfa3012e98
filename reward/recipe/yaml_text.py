"""YAML as recipes are written in it: scalars as in YAML 1.2, line numbers, duplicate keys."""

import re
from pathlib import Path

import yaml

from reward.recipe.keys import KINDS

# ---------------------------------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """Scalars as in YAML 1.2: `1e-5` is a number; `no` (eval_strategy: no), `2024-01-01` and `1:30` are text."""

    yaml_implicit_resolvers = {}


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or `_Loader` would read as something else; writes no aliases."""

    ignore_aliases = staticmethod(lambda data: True)


_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"


for _class, _tag, _pattern, _first in (
    (_Loader, "bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    (_Loader, "null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_Loader, "int", "[-+]?(0|[1-9][0-9_]*)", "-+0123456789"),
    (_Loader, "float", _FLOAT, "-+.0123456789"),
    (_Dumper, "float", _FLOAT, "-+.0123456789"),
):
    _class.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^({_pattern})$"), list(_first)
    )


def _dump(value, flow: bool = True) -> str:
    width = 10**6 if flow else 110
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=flow,
        width=width,
    )
    return text.strip().removesuffix("\n...")


def _parse(text: str, place: str, lines: dict, faults: list[str]):
    """The value of a YAML text. `lines` gets every key's line (`datasets[0].path`: 7), `faults` the duplicate keys."""

    def walk(node, path):
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                walk(item, f"{path}[{index}]")
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here, line = f"{path}.{key.value}".lstrip("."), key.start_mark.line + 1
                if here in lines:
                    found = f"found `{here}` twice, on line {lines[here]} and on line {line}"
                    faults.append(
                        f"{place}:{line}: {found}; it may be given once: delete one of the two lines"
                    )
                lines[here] = line
                walk(value, here)

    loader = _Loader(text)
    node = loader.get_single_node()
    value = loader.construct_document(node) if node else None
    walk(node, "")
    return value


def _read(path: str, lines: dict, faults: list[str]) -> dict | None:
    """The keys of a recipe file; None where it cannot be read, and `faults` says why."""
    needed = "needed are lines such as `learning_rate: 2.0e-5`"
    try:
        found = _parse(Path(path).read_text(encoding="utf-8"), path, lines, faults)
        if isinstance(found, dict):
            return found
        faults.append(f"{path}: found {_word(found)}; {needed}")
    except OSError as error:
        faults.append(
            f"{path}: {error.strerror}; needed is a file, such as `--recipe recipes/quickstart.yaml`"
        )
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        faults.append(f"{path}{_broken(error)}; {needed}")


def _broken(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    what = " ".join(str(getattr(error, "problem", None) or error).split())
    return (f":{mark.line + 1}" if mark else "") + f": not valid YAML ({what})"


# ------------------------------------------------------------------------------------------------------------- one key


def _kind(value) -> str:
    return "null" if value is None else type(value).__name__


def _word(value) -> str:
    return KINDS.get(_kind(value), _kind(value))
