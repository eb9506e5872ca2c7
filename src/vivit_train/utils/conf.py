"""The folder of the configuration files, copies of a configuration, and what several modules ask of one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

_PACKAGE = Path(__file__).parents[1]
# A wheel holds conf/ in the package. In a clone, it is next to src/.
CONF = next((f for f in (_PACKAGE / "conf", _PACKAGE.parents[1] / "conf") if f.is_dir()), _PACKAGE / "conf")


def with_values(cfg: DictConfig, **values: Any) -> DictConfig:
    """Returns a copy of a configuration in which some top-level keys have other values."""
    changed = OmegaConf.merge(cfg, values)
    assert isinstance(changed, DictConfig)
    return changed


def has_pretrained_start(init: Mapping[str, Any]) -> bool:
    """Returns whether an `init` node names weights, so that a model does not start from random ones."""
    return init.get("name") is not None or init.get("path") is not None


def uses_fsdp(cfg: DictConfig) -> bool:
    """Returns whether parameters are sharded among ranks (trainer=fsdp)."""
    return "ModelParallelStrategy" in str(cfg.trainer.strategy)
