"""Model versions only go up: whether one artifact may take the place of another."""

from targets.runtime.artifact import Artifact
from targets.runtime.errors import HighwallError


def check_floor(new: Artifact, floor: int) -> None:
    """Raise HighwallError where `new` is of a lower version than `floor`, the least that may run."""
    if new.manifest.model_version < floor:
        reason = f"it is version {new.manifest.model_version} of {new.manifest.name} where {floor} is the least"
        raise HighwallError(f"{reason} that may run here; build it with a higher --model-version, or lower that limit")


def check_upgrade(installed: Artifact, new: Artifact, allow_downgrade: bool = False) -> None:
    """Raise HighwallError unless `new` may replace `installed`; with `allow_downgrade` it always may.

    Versions are counted per model name, so another name cannot be told from a downgrade. Nor can other
    contents under the same version: records would name one version and mean two models. The same contents
    again, perhaps signed anew, are no change.
    """
    if allow_downgrade or new.digests == installed.digests:
        return
    here, there = installed.manifest, new.manifest
    if there.name != here.name:
        reason = f"it is model {there.name} where {here.name} is installed"
        mend = "if this gateway shall run another model"
    elif there.model_version < here.model_version:
        reason = f"it is version {there.model_version} of {here.name} where {here.model_version} is installed"
        mend = "if you mean to go back"
    elif there.model_version == here.model_version:
        reason = f"it is not the version {here.model_version} of {here.name} that is installed, yet has that number"
        mend = "to replace it, or better build it with a higher --model-version"
    else:
        return
    raise HighwallError(f"{reason}; allow it (--allow-downgrade) {mend}")
