"""Are a checkpoint's files those that it was saved with? `refuse_other_files("rm-out", manifest)`.

Our manifest.json lists every file with its hash. Without tokenizer.json every text gets the same
reward, without chat_template.jinja another one, and none of it fails by itself. So the files that
decide a reward are compared before they are read.
"""

import os
import re

from reward.data.hashing import sha256_of_file
from reward.model.hub import ModelError, checkpoint_file

# Names of the files that decide a reward: weights, configs, tokenizer, chat template, own code.
DECIDES_A_REWARD = re.compile(
    r"(?:.*\.safetensors(?:\.index\.json)?|(?:adapter_)?config\.json|.*\.py"
    r"|(?:tokenizer|added_tokens|special_tokens_map|vocab)(?:_config)?\.json"
    r"|vocab\.txt|merges\.txt|.*\.model|chat_template\.(?:jinja|json))"
)
WEIGHTS = ".safetensors"
# A checkpoint that is not trained further does not need the state of its training.
TRAINING_STATE = re.compile(
    r".*(?:optimizer|scheduler|rng_state|random_states|scaler|global_step|trainer_state|training_args"
    r"|pytorch_model_fsdp|latest|zero_to_fp32).*"
)


def refuse_other_files(
    name: str, manifest: dict, revision: str = "main", *, hash_weights: bool = False
) -> None:
    """Raise ModelError where a checkpoint's files are not those that its manifest lists.

    Every listed file that is not training state has to be there, and the small ones that decide a
    reward have to be the same, byte for byte. Nothing that decides a reward may have been added.

    Args:
        name: A folder, or the id of a Hub model. Of a Hub model only the files that decide a reward
            are compared: it need not be downloaded whole.
        manifest: The checkpoint's own manifest; nothing is compared where it is empty.
        revision: The branch, tag or commit of a Hub model.
        hash_weights: Whether the weights are read and compared too: about a second for each GB.

    Raises:
        ModelError: A file is missing, was changed or was added. The message names it.
    """
    listed = manifest.get("files")
    if not isinstance(listed, dict):
        return
    missing, changed = [], []
    for file, digest in listed.items():
        decides = DECIDES_A_REWARD.fullmatch(file) is not None
        if TRAINING_STATE.fullmatch(file) or not (decides or os.path.isdir(name)):
            continue
        path = checkpoint_file(name, file, revision)
        if path is None:
            missing.append(file)
        elif decides and (hash_weights or not file.endswith(WEIGHTS)):
            if sha256_of_file(path) != digest:
                changed.append(file)
    added = []
    if os.path.isdir(name):
        added = [file for file in sorted(os.listdir(name)) if file not in listed]
        added = [file for file in added if DECIDES_A_REWARD.fullmatch(file)]
    _refuse(name, missing, changed, added)


def _refuse(name: str, missing: list[str], changed: list[str], added: list[str]) -> None:
    """Raise ModelError if any of the three lists of file names has an entry."""
    faults = []
    if missing:
        faults.append(f"{', '.join(missing)} missing")
    if changed:
        faults.append(f"{', '.join(changed)} changed")
    if added:
        faults.append(f"{', '.join(added)} added")
    if faults:
        raise ModelError(
            f"{name} is not what was saved and verified: {'; '.join(faults)} (its manifest.json "
            "lists every file with its hash). Its rewards may be another model's: copy the whole "
            "folder again. If you changed it on purpose, delete manifest.json: then it is read as "
            "a checkpoint of others."
        )
