"""What the repository ships: every recipe and every accelerate config is sound."""

from pathlib import Path

import pytest

from reward.recipe.keys import GROUPS
from reward.recipe.parse import parse_command_line
from reward.recipe.recipe import RecipeError

pytestmark = pytest.mark.usefixtures("empty_folder")

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.name
)
def test_shipped_recipes(path, monkeypatch, empty_folder):
    monkeypatch.chdir(ROOT)
    output_dir = str(empty_folder / "new")
    try:
        recipe = parse_command_line(["--recipe", str(path), "--output_dir", output_dir])
    except RecipeError as error:  # the bundled data may not have been made yet
        assert [fault for fault in error.faults if "data/quickstart/make.py" not in fault] == []
        return
    recipe.save(empty_folder / "copy.yaml")
    copy = parse_command_line(["--recipe", str(empty_folder / "copy.yaml")])
    assert copy.data_sources() == recipe.data_sources()
    assert all(copy[key] == value for key, value in recipe.values.items())
    text = path.read_text()
    header = text.split("\n# Model\n")[0]
    assert all(f"# {word}:" in header for word in ("Assumes", "Launch", "Change", "Expect"))
    banners = [f"# {group}" for group in GROUPS]
    assert [line for line in text.splitlines() if line in banners] == banners


@pytest.mark.parametrize(
    ("name", "kind", "processes"),
    [
        ("single", "NO", 1),
        ("ddp", "MULTI_GPU", 8),
        ("zero2", "DEEPSPEED", 8),
        ("zero3", "DEEPSPEED", 8),
        ("zero3-offload", "DEEPSPEED", 8),
        ("fsdp2", "FSDP", 8),
        ("multi-node", "MULTI_GPU", 16),
    ],
)
def test_accelerate_configs(name, kind, processes):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / "accelerate_configs" / f"{name}.yaml"))
    assert (config.distributed_type.value, config.num_processes, config.mixed_precision) == (
        kind,
        processes,
        None,
    )
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(name[4])
        assert config.deepspeed_config["gradient_accumulation_steps"] == "auto"
        assert config.deepspeed_config["gradient_clipping"] == "auto"
        assert config.deepspeed_config.get("zero3_save_16bit_model", False) is ("zero3" in name)
    if kind == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"


def test_every_accelerate_config_has_a_header_and_is_launched_by_a_test():
    from launched import ENGINES

    files = {path.stem: path.read_text() for path in (ROOT / "accelerate_configs").glob("*.yaml")}
    assert set(files) == {"single", "multi-node", *ENGINES}
    for name, text in files.items():
        assert all(f"\n# {word}:" in text for word in ("When", "Launch", "Needs")), name
