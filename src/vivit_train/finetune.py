"""What `train=auto` trains: with few clips, a head on frozen features (recipe=few_clips), else the whole model."""

import logging

from omegaconf import DictConfig

from vivit_train.build import build_data
from vivit_train.data.annotations.table import Splits
from vivit_train.data.clip_size import SMALL
from vivit_train.models.weights.load import is_image_vit
from vivit_train.recipe import Recipe, composed_again, own_job, read_recipe
from vivit_train.utils.conf import with_values
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
    source = cfg.init.path or cfg.init.name
    job = own_job()
    if source is not None and job is None:
        log.info(
            "note     train=auto trains the whole model: a composed configuration does not tell what the user has "
            "set; pass overrides to vivit_train.train, or set train=head"
        )
    if source is None or job is None or recipe is None or why_other(cfg, recipe):
        return whole, recipe, None
    sizes = {key: getattr(SMALL, key, 1) for key in ("frames", "stride", "short_side", "crop")}
    splits = build_data(with_values(cfg, data=sizes)).splits
    if len(splits.train) > FEW or not (cfg.init.path is None or is_image_vit(str(cfg.init.path))):
        return whole, recipe, splits
    log.info(
        f"recipe   {PAGE}: a head on frozen features, because the start is an image ViT and there are only "
        f"{plural(len(splits.train), 'training clip')} (at most {FEW:,}); train=all trains the whole model instead"
    )
    words = [word for word in job.overrides.task if not word.startswith("recipe=")]
    return composed_again(str(job.job.config_name), [*words, f"recipe={PAGE}"]), read_recipe(PAGE), splits


def why_other(cfg: DictConfig, recipe: Recipe) -> bool:
    """Returns whether the user has set something that a head on frozen features has no use for."""
    typed = {key for key in recipe.typed if key.startswith(OTHER) and key != "model.size"}
    return bool(typed) or cfg.model.get("model") != "vivit_fe" or cfg.init.source is not None
