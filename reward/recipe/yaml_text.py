"""The YAML of recipes: scalars as in YAML 1.2, the line of every key, and no key twice."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from reward.recipe.keys import KINDS
from reward.recipe.paths import similar_recipes


class _Loader(yaml.SafeLoader):
    """Reads scalars as in YAML 1.2: `1e-5` is a number; `no`, `2024-01-01` and `1:30` are text.

    So `eval_strategy: no` needs no quotes.
    """

    yaml_implicit_resolvers = {}


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or `_Loader` would read as something else.

    It writes no aliases.
    """

    ignore_aliases = staticmethod(lambda data: True)


_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"

# The class, a type, its pattern, and the characters that such a scalar can begin with.
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


@dataclass
class YamlText:
    """The content of a YAML text, and the line of each of its keys.

    The key of an inner mapping is named by its path, such as `datasets[0].split`.
    """

    place: str  # the name of the text in errors, such as the file's path
    value: object = None  # None if the text could not be read
    lines: dict[str, int] = field(default_factory=dict)  # path of a key -> its line, from 1
    faults: list[str] = field(default_factory=list)  # one for each key that the text holds twice

    def place_of(self, key: str) -> str:
        """`FILE:LINE` of a key. A key without a line of its own has the line of its list."""
        line = self.lines.get(key) or self.lines.get(key.split("[")[0])
        if line:
            return f"{self.place}:{line}"
        return self.place

    def _add_lines(self, node: yaml.Node | None, path: str) -> None:
        """Add the line of every key below a node, and a fault for a key that comes twice."""
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._add_lines(item, f"{path}[{index}]")
        if isinstance(node, yaml.MappingNode):
            for key_node, value_node in node.value:
                key = f"{path}.{key_node.value}".lstrip(".")
                line = key_node.start_mark.line + 1
                if key in self.lines:
                    self.faults.append(
                        f"{self.place}:{line}: found `{key}` twice, on line {self.lines[key]} and "
                        f"on line {line}; it may be given once: delete one of the two lines"
                    )
                self.lines[key] = line
                self._add_lines(value_node, key)


def parse_yaml(text: str, place: str) -> YamlText:
    """Read a YAML text.

    Args:
        text: The YAML, one document.
        place: The name of the text in errors: the file's path, or `command line: --KEY`.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: The text is not valid; see `not_valid_yaml`.
    """
    loader = _Loader(text)
    node = loader.get_single_node()
    yaml_text = YamlText(place)
    if node:
        yaml_text.value = _value_of(loader, node)
    yaml_text._add_lines(node, "")
    return yaml_text


def _value_of(loader: _Loader, node: yaml.Node) -> object:
    """The value of a node. Raises what `parse_yaml` raises."""
    try:
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise
    # PyYAML raises KeyError for `!!bool maybe`, AttributeError for `!!timestamp x`, and others.
    except Exception as error:
        what = f"a tag such as !!bool or !!timestamp does not fit its value: {error}"
        raise ValueError(what) from error


def read_recipe_file(path: str) -> YamlText:
    """Read the keys of a recipe file.

    Returns:
        The text, whose value is a dict. If the file holds no dict the value is None, and a fault
        says why.
    """
    needed = "needed are lines such as `learning_rate: 2.0e-5`"
    unreadable = YamlText(path)
    try:
        yaml_text = parse_yaml(Path(path).read_text(encoding="utf-8"), path)
    except OSError as error:
        unreadable.faults.append(f"{path}: {error.strerror}; {_needed_instead_of(path)}")
        return unreadable
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        unreadable.faults.append(f"{path}{not_valid_yaml(error)}; {needed}")
        return unreadable
    if not isinstance(yaml_text.value, dict):
        kind = kind_in_words(yaml_text.value)
        yaml_text.faults.append(f"{path}: found {kind}; {needed}")
        yaml_text.value = None
    return yaml_text


def _needed_instead_of(path: str) -> str:
    """What `--recipe` needs in the place of a path that cannot be read."""
    shipped = " or ".join(f"`--recipe {name}`" for name in similar_recipes(path))
    if shipped:
        return f"did you mean {shipped}? `--list-recipes` says which there are"
    return (
        "needed is a file, such as `--recipe recipes/quickstart.yaml`, or a name that "
        "`python train_rm.py --list-recipes` prints"
    )


def not_valid_yaml(error: Exception) -> str:
    """`:LINE: not valid YAML (why)` for an error of `parse_yaml`, to be written after the place."""
    problem = getattr(error, "problem", None) or error
    message = f": not valid YAML ({' '.join(str(problem).split())})"
    mark = getattr(error, "problem_mark", None)
    if mark:
        return f":{mark.line + 1}{message}"
    return message


def to_yaml(value: object, flow: bool = True) -> str:
    """The value as YAML: on one line with `flow`, and with a line for each key without it."""
    width = 110
    if flow:
        width = 10**6
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=flow,
        width=width,
    )
    return text.strip().removesuffix("\n...")


def kind_of(value: object) -> str:
    """The type of a value that was read from YAML, as KINDS and the keys name it."""
    if value is None:
        return "null"
    return type(value).__name__


def kind_in_words(value: object) -> str:
    """The type of a value in the words of errors, such as `a number`."""
    kind = kind_of(value)
    return KINDS.get(kind, kind)
