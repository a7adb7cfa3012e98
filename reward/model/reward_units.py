"""The figures of a checkpoint that put its rewards on a known scale: `reward_units(...)`."""

from reward.data.cells import is_finite_number, kind_of
from reward.data.feedback import RewardUnits
from reward.model.hub import ModelError, checkpoint_object

AUDIT = "audit/audit.json"


def reward_units(
    ckpt: str, revision: str = "main", calibrated: bool = False, normalized: bool = False
) -> RewardUnits:
    """Read what score.py's --calibrated and --normalized need.

    Args:
        ckpt: Folder or Hub id of a reward model.
        revision: Of a Hub id.
        calibrated: Whether the temperature of its audit is needed.
        normalized: Whether the mean and the standard deviation of its rewards are needed.

    Raises:
        ModelError: The checkpoint does not have them.
    """
    if calibrated:
        return RewardUnits(temperature=_temperature(ckpt, revision))
    if normalized:
        return _mean_and_std(ckpt, revision)
    return RewardUnits()


def temperature_of_audit(ckpt: str, revision: str) -> float | None:
    """Return the temperature that an audit left in a checkpoint; None where there is none.

    Raises:
        ModelError: audit/audit.json cannot be read, or its temperature is no number above 0.
    """
    audit = checkpoint_object(ckpt, AUDIT, revision) or {}
    temperature = audit.get("temperature")
    if temperature is None or (is_finite_number(temperature) and temperature > 0):
        return temperature
    raise ModelError(
        f"{ckpt}: the temperature in {AUDIT} is {kind_of(temperature)}; a number above 0 is "
        f"needed: audit it again, python audit.py --ckpt {ckpt}"
    )


def _temperature(ckpt: str, revision: str) -> float:
    if checkpoint_object(ckpt, AUDIT, revision) is None:
        raise ModelError(
            f"{ckpt}: --calibrated needs the temperature that an audit found, and there is no "
            f"{AUDIT} in it; run: python audit.py --ckpt {ckpt}"
        )
    temperature = temperature_of_audit(ckpt, revision)
    if temperature is None:
        raise ModelError(
            f"{ckpt}: --calibrated needs a temperature, and its audit has measured none: either it "
            "was not trained with a Bradley-Terry loss, or there were too few pairs"
        )
    return temperature


def _mean_and_std(ckpt: str, revision: str) -> RewardUnits:
    manifest = checkpoint_object(ckpt, "manifest.json", revision) or {}
    validation = manifest.get("validation")
    if not isinstance(validation, dict):
        validation = {}
    mean, std = validation.get("reward_mean"), validation.get("reward_std")
    if not is_finite_number(mean) or not is_finite_number(std) or not std:
        raise ModelError(
            f"{ckpt}: --normalized needs `reward_mean` and `reward_std` of the validation pairs in "
            "manifest.json; train_rm.py writes them where the recipe has validation pairs "
            "(validation_fraction: 0.1)"
        )
    return RewardUnits(mean=mean, std=std)
