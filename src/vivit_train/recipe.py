"""Compares a run with its recipe: the configuration of the same data, model and recipe without other overrides."""

import logging
from collections.abc import Collection, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from vivit_train.keys import SPEED, included
from vivit_train.utils.arguments import accepted_arguments
from vivit_train.utils.conf import CONF
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import plural

log = logging.getLogger(__name__)
# A recipe sets arguments of these, and another class may replace the recipe's.
PARTS = ("optimizer", "scheduler", "loss")
# A recipe is about these keys and sections.
COMPARED = (
    *("data.", "model.", "init.", "optimizer.", "scheduler.", "loss.", "task."),
    *("global_batch_size", "mixup", "cutmix", "ema_decay", "layer_decay", "cache"),
    *("trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "trainer.gradient_clip_val"),
    "trainer.limit_train_batches",
)
# These keys choose the videos, or affect only the speed.
NEUTRAL = (
    *("data.name", "data.root", "data.reader", "data.train", "data.val", "data.test"),
    *("model.model", "model.frames", "model.image_size"),
    *SPEED,
)
IF_STATED = ("model.size", "eval.views")  # Most recipes leave these to the user.


@dataclass(frozen=True)
class Recipe:
    """The recipe of a run.

    Attributes:
        name: The name of its file in conf/recipe, or "" if the data set has none.
        values: What the recipe and the defaults give, by dotted key.
        typed: The keys that the command line sets.
    """

    name: str
    values: dict[str, Any]
    typed: frozenset[str] = field(default_factory=frozenset)

    def differences(self, cfg: DictConfig) -> list[tuple[str, Any, Any]]:
        """Returns (key, value of the recipe, value of this run) for each setting that differs."""
        actual = {key: value for key, value in flatten(cfg).items() if compared(key) or key in self.values}
        keys = dict.fromkeys((*self.values, *actual))
        pairs = ((key, self.values.get(key), actual.get(key)) for key in keys)
        # The run chooses a value for "auto", which is no difference unless the command line sets another one.
        return [
            (key, ours, theirs)
            for key, ours, theirs in pairs
            if ours != theirs and not (ours == "auto" and key not in self.typed)
        ]

    def table(self, cfg: DictConfig) -> str:
        """Returns a readable table of the settings in which this run differs from the recipe."""
        title = f"recipe `{self.name}`" if self.name else "the defaults of conf/train.yaml"
        rows = self.differences(cfg)
        if not rows:
            return f"no settings differ from {title}"
        cells = [
            ("", "recipe", "this run"),
            *((key, shown(stated), shown(actual)) for key, stated, actual in rows),
        ]
        widths = [max(len(row[i]) for row in cells) for i in range(2)]
        lines = [f"  {key:<{widths[0]}}  {stated:<{widths[1]}}  {actual}" for key, stated, actual in cells]
        verb = "differs" if len(rows) == 1 else "differ"
        return "\n".join([f"{plural(len(rows), 'setting')} {verb} from {title}", *lines])


def read_recipe(name: str | None = None) -> Recipe | None:
    """Returns the recipe of this Hydra job, or None if Hydra did not compose the configuration.

    Args:
        name: The name of the recipe that takes the place of the chosen one; None is the chosen one.
    """
    hydra = own_job()
    if hydra is None or hydra.runtime.choices["model"] is None:  # An evaluation may choose no model.
        return None
    choices = hydra.runtime.choices
    name = str(choices.get("recipe") or "") if name is None else name
    holder = next((folder for folder in config_folders() if (folder / f"recipe/{name}.yaml").is_file()), None)
    name = name if holder else ""
    groups = [f"{group}={choices[group]}" for group in ("model", "data", "task") if group in choices]
    groups.append(f"recipe={name or 'none'}")
    stated = flatten(composed_again(str(hydra.job.config_name), groups))
    by_the_page = stated_keys(holder, f"recipe/{name}.yaml") if holder else set()
    kept = {k: v for k, v in stated.items() if compared(k) or (k in IF_STATED and k in by_the_page)}
    return Recipe(name, kept, typed_keys(hydra.overrides.task))


def own_job() -> HydraConf | None:
    """Returns Hydra's own configuration of this job, or None without Hydra or in a job of another program.

    A program that calls train() or evaluate() may itself use Hydra, with other groups.
    """
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    return hydra if hydra and {"model", "data"} <= hydra.runtime.choices.keys() else None


def typed_in_job() -> frozenset[str]:
    """Returns the keys that the command line of this Hydra job sets; none without Hydra."""
    hydra = own_job()
    return typed_keys(hydra.overrides.task) if hydra else frozenset()


def data_defaults(name: str) -> tuple[str, DictConfig]:
    """Returns the option of `data=` in an evaluation, and the `data` node that train.py has for it by its recipe.

    Args:
        name: `data.name`, which is the option if Hydra did not compose the configuration.
    """
    hydra = own_job()
    option = str(hydra.runtime.choices["data"]) if hydra else name
    return option, composed_again("train", [f"data={option}"]).data


def composed_again(config_name: str, groups: Iterable[str]) -> DictConfig:
    """Returns a configuration with these overrides alone, from the folders of this Hydra job."""
    folders = config_folders()
    added = ", ".join(f"'file://{folder}'" for folder in folders[1:])
    in_job = GlobalHydra.instance().is_initialized()
    with nullcontext() if in_job else initialize_config_dir(str(folders[0]), version_base="1.3"):
        return compose(config_name, [f"hydra.searchpath=[{added}]", *groups])


def config_folders() -> list[Path]:
    """Returns the folders of the configuration: the own one of this Hydra job, or that of the package, first."""
    hydra = own_job()
    if not hydra:
        return [CONF]
    return [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]


def typed_keys(overrides: Iterable[str]) -> frozenset[str]:
    """Returns the keys that overrides set, such as "optimizer.lr" of "+optimizer.lr=0.1"."""
    return frozenset(text.lstrip("+~").partition("=")[0] for text in overrides)


def stated_keys(conf: Path, page: str) -> set[str]:
    """Returns the keys that a page of conf/recipe states, itself or in the pages that it includes."""
    return {key for file in (*included(conf, page), page) for key in flatten(OmegaConf.load(conf / file))}


def without_foreign_arguments(cfg: DictConfig, typed: Collection[str]) -> DictConfig:
    """Returns a copy without the recipe's arguments that the chosen optimizer, scheduler or loss does not accept.

    What the user has typed stays, so that `validate` refuses it.

    Args:
        cfg: The configuration as it is composed.
        typed: The keys that the user sets.
    """
    changed = cfg.copy()
    for part in PARTS:
        node = changed.get(part)
        try:
            accepted = accepted_arguments(node, part) if isinstance(node, DictConfig) else ()
        except UserError:  # `validate` reports it together with other problems.
            continue
        foreign = [key for key in map(str, node or ()) if key not in accepted and not key.startswith("_")]
        for name in (name for name in foreign if f"{part}.{name}" not in typed):
            log.info(f"note     the recipe's {part}.{name} is left out: {node._target_} has no such argument")
            with open_dict(node):
                del node[name]
    return changed


def compared(key: str) -> bool:
    """Returns whether a key is a part of every recipe."""
    return key == "train" or (key.startswith(COMPARED) and not key.startswith(NEUTRAL) and key not in IF_STATED)


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of a configuration by dotted key; lists and values that cannot be resolved are leaves."""
    values: dict[str, Any] = {}
    for key in node:
        if OmegaConf.is_missing(node, key) or key == "run_dir":
            continue
        value = node[key]
        if isinstance(value, DictConfig):
            values |= flatten(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = list(value) if OmegaConf.is_list(value) else value
    return values


def shown(value: Any) -> str:
    """Formats a value as it is written in YAML."""
    words = {"None": "null", "True": "true", "False": "false"}
    return words.get(str(value), str(value))
