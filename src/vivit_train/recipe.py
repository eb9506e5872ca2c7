"""Compares a run with its recipe and scales the learning rate to the global batch."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from vivit_train.utils.text import plural

# Maps values of a recipe to the keys where they take effect, unless they are read from `recipe` itself.
EFFECT = {
    "recipe.epochs": "trainer.max_epochs",
    "recipe.clip_grad_norm": "trainer.gradient_clip_val",
    "recipe.global_batch": "data.global_batch",
    "recipe.drop_path": "model.drop_path",
    "recipe.init": "init.name",
    "recipe.scale_jitter": "data.scale_jitter",
    "recipe.flip": "data.flip",
    "recipe.color_jitter": "data.color_jitter",
    "recipe.strong_color": "data.strong_color",
    "recipe.randaugment": "data.randaugment",
    "recipe.random_erasing": "data.random_erasing",
    "recipe.weight_decay": "task.weight_decay",
    "recipe.label_smoothing": "task.label_smoothing",
    "recipe.mixup": "task.mixup",
    "recipe.cutmix": "task.cutmix",
}
# These settings are not part of any recipe; the values are their defaults.
UNSTATED: dict[str, Any] = {
    "init.path": None,
    "data.fps": None,
    "data.sampling": "window",
    "data.short": "loop",
    "data.clips_per_video": 1,
    "data.balance": None,
    "data.limit_per_class": None,
    "data.squash": False,
    "trainer.max_steps": -1,
    "trainer.max_time": None,
    "trainer.limit_train_batches": 1.0,
}
SCALES = {"linear": lambda ratio: ratio, "sqrt": math.sqrt}


@dataclass(frozen=True)
class Page:
    """A recipe as it is written in conf/recipe.

    Attributes:
        name: The name of the recipe.
        values: The values by dotted key.
    """

    name: str
    values: dict[str, Any]


def read_page() -> Page | None:
    """Reads the recipe of this Hydra job; returns None if Hydra did not compose the configuration."""
    if not HydraConfig.initialized():
        return None
    runtime = HydraConfig.get().runtime
    name = runtime.choices["recipe"]
    folders = [Path(source.path) / "recipe" for source in runtime.config_sources if source.schema == "file"]
    return Page(name, flatten(merged(name, folders)))


def merged(name: str, folders: list[Path]) -> DictConfig:
    """Returns a recipe merged over the recipes that it is based on."""
    file = next(folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").is_file())
    page = OmegaConf.load(file)
    assert isinstance(page, DictConfig)
    bases = [merged(base, folders) for base in page.pop("defaults", []) if base != "_self_"]
    result = OmegaConf.merge(*bases, page)
    assert isinstance(result, DictConfig)
    return result


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of a configuration by dotted key."""
    values: dict[str, Any] = {}
    for key, value in node.items():
        values |= flatten(value, f"{prefix}{key}.") if isinstance(value, DictConfig) else {f"{prefix}{key}": value}
    return values


def differences(cfg: DictConfig, page: Page) -> list[tuple[str, Any, Any]]:
    """Returns (key, value of the recipe, value of this run) for each setting that differs."""
    found = []
    for key, stated in (page.values | UNSTATED).items():
        where = EFFECT.get(key, key.replace("recipe.optimizer.", "task.optimizer."))
        actual = OmegaConf.select(cfg, where)
        if plain(actual) != plain(stated):
            found.append((where.replace("task.optimizer.", "recipe.optimizer."), plain(stated), plain(actual)))
    return found


def plain(value: Any) -> Any:
    """Returns a value with OmegaConf lists as plain lists."""
    return list(value) if isinstance(value, ListConfig) else value


def table(cfg: DictConfig, page: Page | None) -> str:
    """Returns a readable table of the settings in which this run differs from its recipe."""
    if page is None:
        return "recipe: not composed by Hydra, so there is no recipe to compare with"
    rows = differences(cfg, page)
    if not rows:
        return f"no settings differ from recipe `{page.name}`"
    cells = [("", "recipe", "this run"), *((key, str(stated), str(actual)) for key, stated, actual in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(2)]
    lines = [f"  {key:<{widths[0]}}  {stated:<{widths[1]}}  {actual}" for key, stated, actual in cells]
    verb = "differs" if len(rows) == 1 else "differ"
    return "\n".join([f"{plural(len(rows), 'setting')} {verb} from recipe `{page.name}`", *lines])


def scale_learning_rate(cfg: DictConfig, page: Page | None) -> None:
    """Scales the learning rate by the global batch relative to the recipe's if `recipe.scale_lr` is set."""
    if cfg.recipe.scale_lr is not None and page is not None:
        ratio = cfg.data.global_batch / page.values["recipe.global_batch"]
        cfg.recipe.optimizer.lr *= SCALES[cfg.recipe.scale_lr](ratio)
