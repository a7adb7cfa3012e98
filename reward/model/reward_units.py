"""The figures of a checkpoint that put its rewards on a known scale: `reward_units(...)`."""

from reward.data.feedback import RewardUnits
from reward.model.hub import ModelError, checkpoint_object


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


def _temperature(ckpt: str, revision: str) -> float:
    audit = checkpoint_object(ckpt, "audit/audit.json", revision)
    if audit is None:
        raise ModelError(
            f"{ckpt}: --calibrated needs the temperature that an audit found, and there is no "
            f"audit/audit.json in it; run: python audit.py --ckpt {ckpt}"
        )
    temperature = audit.get("temperature")
    if temperature is None:
        raise ModelError(
            f"{ckpt}: --calibrated needs a temperature, and its audit has measured none: either it "
            "was not trained with a Bradley-Terry loss, or there were too few pairs"
        )
    return temperature


def _mean_and_std(ckpt: str, revision: str) -> RewardUnits:
    manifest = checkpoint_object(ckpt, "manifest.json", revision) or {}
    validation = manifest.get("validation") or {}
    mean, std = validation.get("reward_mean"), validation.get("reward_std")
    if mean is None or not std:
        raise ModelError(
            f"{ckpt}: --normalized needs `reward_mean` and `reward_std` of the validation pairs in "
            "manifest.json; train_rm.py writes them where the recipe has validation pairs "
            "(validation_fraction: 0.1)"
        )
    return RewardUnits(mean=mean, std=std)
