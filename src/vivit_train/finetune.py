"""What `train=auto` trains: with few clips, a head on frozen features (recipe=few_clips), else the whole model."""

import logging
from collections.abc import Collection, Iterable

from omegaconf import DictConfig

from vivit_train.build import build_data
from vivit_train.data.annotations.table import Splits
from vivit_train.data.clip_size import SMALL
from vivit_train.models.weights.load import is_image_vit
from vivit_train.recipe import Recipe, composed_again, own_job, read_recipe
from vivit_train.utils.conf import has_pretrained_start, with_values
from vivit_train.utils.text import plural

log = logging.getLogger(__name__)
FEW = 1000  # At most so many training clips are few. The measurements are in docs/small-data.md.
PAGE = "few_clips"
# Who sets one of these has another model or training in mind.
OTHER = (
    *("model.", "mixup", "cutmix", "layer_decay", "cache", "trainer.strategy"),
    *("data.clips_per_video", "data.stride", "data.fps", "data.padding"),
)


def resolve_training(cfg: DictConfig, recipe: Recipe | None) -> tuple[DictConfig, Recipe | None, Splits | None]:
    """Returns a configuration in which `train` is not `auto`, and logs the choice.

    With at most `FEW` training clips and an image ViT as the start, it is that of the same command with
    recipe=few_clips, so that all that the user sets stays as it is.

    Returns:
        The configuration, its recipe, and the annotations, if they had to be read.
    """
    if cfg.train != "auto":
        return cfg, recipe, None
    whole = with_values(cfg, train="all")
    job = own_job()
    if job is None and has_pretrained_start(cfg.init):
        log.info(
            "note     train=auto trains the whole model: a composed configuration does not tell what the user has "
            "set; pass overrides to vivit_train.train, or set train=head"
        )
    if job is None or recipe is None or is_other(cfg, recipe.typed):
        return whole, recipe, None
    sizes = {key: getattr(SMALL, key, 1) for key in ("frames", "stride", "short_side", "crop")}
    splits = build_data(with_values(cfg, data=sizes)).splits
    if not is_few(cfg, len(splits.train)):
        return whole, recipe, splits
    log.info(few_notice(f"there are only {plural(len(splits.train), 'training clip')}"))
    return composed_again(str(job.job.config_name), few_words(job.overrides.task)), read_recipe(PAGE), splits


def is_other(cfg: DictConfig, typed: Collection[str]) -> bool:
    """Returns whether the start is random, or the user has set what a head on frozen features has no use for.

    Args:
        cfg: The configuration.
        typed: The keys that the user sets.
    """
    keys = [key for key in typed if key.startswith(OTHER) and key != "model.size"]
    has_start = has_pretrained_start(cfg.init)
    return bool(keys) or not has_start or cfg.model.get("model") != "vivit_fe" or cfg.init.source is not None


def is_few(cfg: DictConfig, num_clips: int) -> bool:
    """Returns whether a head is trained on so many training clips, if the configuration is not another one."""
    return num_clips <= FEW and (cfg.init.path is None or is_image_vit(str(cfg.init.path)))


def few_words(overrides: Iterable[str]) -> list[str]:
    """Returns the overrides of the same command with recipe=few_clips."""
    return [
        *(word for word in overrides if not word.startswith("recipe=") and word != "train=auto"),
        f"recipe={PAGE}",
    ]


def few_notice(why: str) -> str:
    """Returns the line that says that a head is trained."""
    return (
        f"recipe   {PAGE}: a head on frozen features, because the start is an image ViT and {why} "
        f"(at most {FEW:,}); train=all trains the whole model instead, and `vivit probe` compares many such heads"
    )
