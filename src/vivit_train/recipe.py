"""The page of a run's recipe: what the run does otherwise, and the learning rate of another batch."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

# where a value of the page takes effect, for those that are not read from `recipe` itself
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
# what no page states, and what it is then
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
    """A file of conf/recipe as it is written; `values` by dotted key."""

    name: str
    values: dict[str, Any]


def read_page() -> Page | None:
    """The recipe that Hydra chose for this job; None where the configuration was not composed by a Hydra job."""
    if not HydraConfig.initialized():
        return None
    runtime = HydraConfig.get().runtime
    name = runtime.choices["recipe"]
    folders = [Path(source.path) / "recipe" for source in runtime.config_sources if source.schema == "file"]
    return Page(name, flatten(merged(name, folders)))


def merged(name: str, folders: list[Path]) -> DictConfig:
    """A page after the pages that it starts from."""
    file = next(folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").is_file())
    page = OmegaConf.load(file)
    assert isinstance(page, DictConfig)
    bases = [merged(base, folders) for base in page.pop("defaults", []) if base != "_self_"]
    result = OmegaConf.merge(*bases, page)
    assert isinstance(result, DictConfig)
    return result


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in node.items():
        values |= flatten(value, f"{prefix}{key}.") if isinstance(value, DictConfig) else {f"{prefix}{key}": value}
    return values


def differences(cfg: DictConfig, page: Page) -> list[tuple[str, Any, Any]]:
    """(key, the page's value, this run's) for each that is not the same."""
    found = []
    for key, stated in (page.values | UNSTATED).items():
        where = EFFECT.get(key, key.replace("recipe.optimizer.", "task.optimizer."))
        actual = OmegaConf.select(cfg, where)
        if plain(actual) != plain(stated):
            found.append((where.replace("task.optimizer.", "recipe.optimizer."), plain(stated), plain(actual)))
    return found


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, ListConfig) else value


def table(cfg: DictConfig, page: Page | None) -> str:
    """What this run does otherwise than its recipe, for a person to read."""
    if page is None:
        return "recipe: not composed by Hydra, so there is no page to compare with"
    rows = differences(cfg, page)
    if not rows:
        return f"recipe={page.name}: nothing differs from its page"
    cells = [("", "recipe", "this run"), *((key, str(stated), str(actual)) for key, stated, actual in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(2)]
    lines = [f"  {key:<{widths[0]}}  {stated:<{widths[1]}}  {actual}" for key, stated, actual in cells]
    return "\n".join([f"recipe={page.name}: {len(rows)} differences from its page", *lines])


def scale_learning_rate(cfg: DictConfig, page: Page | None) -> None:
    """By the global batch relative to the page's, and only where `recipe.scale_lr` asks for it."""
    if cfg.recipe.scale_lr is not None and page is not None:
        ratio = cfg.data.global_batch / page.values["recipe.global_batch"]
        cfg.recipe.optimizer.lr *= SCALES[cfg.recipe.scale_lr](ratio)
