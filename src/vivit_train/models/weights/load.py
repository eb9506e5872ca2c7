"""Initializes a model from weights of any kind.

A kind of source is one file with a detector, and a key map if it has other names. A detector gets the `Source` and
the model, and returns `ImageWeights`, `VideoWeights`, or None if the source is not of its kind:

    def detect_dino(source: Source, model: ViViT) -> ImageWeights | None:
        if "backbone.cls_token" not in source.tensors:
            return None
        return ImageWeights(source.name, {name.removeprefix("backbone."): x for name, x in source.tensors.items()})

`DETECTORS` lists those of this package. A run uses one of another package with `init.source=mypkg.detect_dino`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Literal

from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.adapt import load_from_vivit
from vivit_train.models.weights.heads import check_order
from vivit_train.models.weights.huggingface import detect_huggingface
from vivit_train.models.weights.huggingface_vits import detect_huggingface_vit
from vivit_train.models.weights.report import LoadReport
from vivit_train.models.weights.scenic import detect_scenic
from vivit_train.models.weights.source import Detector, ImageWeights, Source, VideoWeights
from vivit_train.models.weights.tadaconv import detect_tadaconv
from vivit_train.models.weights.timesformer import detect_timesformer
from vivit_train.models.weights.timm_vit import detect_image_vit, init_from_vit
from vivit_train.models.weights.videomae import detect_videomae
from vivit_train.models.weights.vivit_file import detect_vivit_file
from vivit_train.utils.errors import UserError, reason

# The first detector that knows a source returns its weights.
DETECTORS: tuple[Detector, ...] = (
    detect_vivit_file,
    detect_scenic,
    detect_videomae,
    detect_timesformer,
    detect_tadaconv,
    detect_huggingface_vit,
    detect_huggingface,
    detect_image_vit,
)


def load_pretrained(
    model: ViViT,
    source: str | Path | ImageWeights | VideoWeights,
    *,
    tubelet: Literal["central_frame", "inflation"] = "central_frame",
    min_coverage: float = 0.9,
    classes: Mapping[str, Sequence[str]] | None = None,
    frames: int | None = None,
    heads: Sequence[str] | None = None,
    multi_label: bool = False,
    detectors: Sequence[Detector] = (),
) -> LoadReport:
    """Initializes `model` in place and returns the weight-loading report.

    An image ViT is loaded by `init_from_vit`. From a ViViT of the same model and size, all weights are copied.
    Position embeddings of another grid are interpolated. The head is zero-initialized if the classes differ, or if
    only one of the two models is multi-label.

    Args:
        model: The model to initialize.
        source: A checkpoint of vivit-train, a weight file (from vivit-train, timm, scenic, or the authors of
            VideoMAE, TimeSformer, or TAdaConv), a folder (from Hugging Face, or from scenic with
            checkpoint_<step> files), a name on the Hugging Face Hub, or a timm model name; or weights that are
            already read.
        tubelet: How an image ViT's patch embedding is expanded in time; see `init_from_vit`.
        min_coverage: The share of parameters that an image ViT must fill; see `init_from_vit`.
        classes: The class names of the model by head. A single head has the name "".
        frames: The number of frames of the source (1 for an image ViT), if its position embeddings are ambiguous.
        heads: The order of the model's heads in a single output of the source, if its layout is not known.
        multi_label: Whether a video may have any number of classes.
        detectors: Detectors of other kinds of sources, which are asked before those of this package.

    Raises:
        UserError: The source does not exist, cannot be read, is not a ViT, or does not fit. `model` is
            then unchanged.
    """
    try:
        if isinstance(source, ImageWeights | VideoWeights):
            found, source = source, source.source
        else:
            found = detect(Source(str(source)), model, (*detectors, *DETECTORS))
        if heads is not None:
            found = with_heads(found, heads, model)
        if isinstance(found, VideoWeights):
            return load_from_vivit(model, found, classes, frames, multi_label)
        report = init_from_vit(
            model,
            found.state,
            tubelet=tubelet,
            min_coverage=min_coverage,
            source=found.source,
            heads=found.heads,
        )
    except (LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        # A file can hold anything, including tensors and mappings that no ViT has.
        raise UserError(f"{source} does not hold the weights of a ViT: {reason(error)}") from error
    report.statistics, report.license = found.statistics, found.license
    report.notes += differences(model, found)
    return report


def differences(model: ViViT, found: ImageWeights) -> list[str]:
    """Returns a line that names the settings without which the features differ a little from the source's."""
    ours, theirs = model.settings(), {"act": found.act, "norm_eps": found.norm_eps}
    keys = [f"model.{key}={value}" for key, value in theirs.items() if value is not None and value != ours[key]]
    return [f"for the features of the source, set {' '.join(keys)}"] if keys else []


def with_heads(found: ImageWeights | VideoWeights, heads: Sequence[str], model: ViViT) -> VideoWeights:
    """Returns the weights with the order of the heads that the user states.

    Raises:
        UserError: The source has no such order, or names its classes itself.
    """
    if not isinstance(found, VideoWeights) or found.classes is not None:
        why = "names the classes of each row" if isinstance(found, VideoWeights) else "is an image ViT"
        raise UserError(f"init.heads=[{','.join(heads)}]: {found.source} {why}, so set init.heads=null")
    return replace(found, heads=check_order(heads, model.head_sizes, found.source))


def import_detector(path: str) -> Detector:
    """Returns the detector with a dotted path, such as "mypkg.detect_dino".

    Raises:
        UserError: There is no such function.
    """
    try:
        detector: Detector = resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"init.source={path}: no such function ({reason(error)})") from error
    return detector


def is_image_vit(name: str) -> bool:
    """Returns whether a source holds the weights of an image ViT; false for all that cannot be read."""
    try:
        model = ViViT("vivit_fe", num_classes=1, dim=4, depth=1, heads=1, frames=2, image_size=16)
        return isinstance(detect(Source(name), model, DETECTORS), ImageWeights)
    except (UserError, LookupError, TypeError, ValueError, RuntimeError, ArithmeticError):
        return False


def detect(source: Source, model: ViViT, detectors: Sequence[Detector]) -> ImageWeights | VideoWeights:
    """Returns the weights that the first detector finds.

    Raises:
        UserError: No detector knows the source.
    """
    for detector in detectors:
        if (found := detector(source, model)) is not None:
            return found
    raise UserError(f"{source.name} has neither config.json (Hugging Face) nor checkpoint_<step> (scenic)")
