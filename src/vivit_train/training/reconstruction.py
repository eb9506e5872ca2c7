"""What the best checkpoint of self-pretraining reconstructs: its validation loss, and pictures of a few clips."""

import json
import logging
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import Tensor

from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.dataset import EvalProtocol
from vivit_train.models.masked import at_places, scales, tubelets, whole_clip
from vivit_train.training.checkpoint import read_checkpoint
from vivit_train.training.loggers import log_image
from vivit_train.training.pretraining import VALIDATION, MaskedPretraining
from vivit_train.utils.distributed import translate_rank_errors
from vivit_train.utils.errors import VideoError
from vivit_train.utils.files import replacing
from vivit_train.utils.plots import reconstructions
from vivit_train.utils.text import plural, printable
from vivit_train.utils.version import package_version

log = logging.getLogger(__name__)
PICTURE = "reconstructions.png"
CLIPS = 4  # The picture shows so many.
GRAY = 0.85  # Masked tubelets are drawn in this gray.


def show_reconstructions(
    task: MaskedPretraining,
    ckpt_path: str,
    data: VideoDataModule,
    trainer: L.Trainer,
    out: Path,
    *,
    pictures: bool,
) -> None:
    """Measures the validation loss of a checkpoint and draws what it reconstructs.

    Writes metrics.json and reconstructions.png.

    Args:
        task: The task, which gets the weights of the checkpoint.
        ckpt_path: The checkpoint of this run.
        data: The data module.
        trainer: The trainer.
        out: The output folder.
        pictures: Whether to draw.
    """
    task.load_state_dict(read_checkpoint(Path(ckpt_path))["state_dict"])
    with data.translate_worker_errors(), translate_rank_errors():
        found = trainer.validate(task, datamodule=data, verbose=False)
    scores = {name: value for part in found for name, value in part.items()}
    contents = {**scores, "checkpoint": ckpt_path, **package_version()}
    if not trainer.is_global_zero:
        return
    with replacing(out / "metrics.json") as part:
        part.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    if scores:
        clips = plural(int(scores["val/n"]), "validation clip")
        log.info(f"reconstruction loss {scores['val/loss']:.4f} on {clips}")
    written = ["metrics.json"]
    if pictures and draw(task, data, out / PICTURE):
        written.append(PICTURE)
        for logger in trainer.loggers:
            log_image(logger, "val/reconstructions", out / PICTURE, trainer.global_step)
    log.info(
        f"written: {out}/{', '.join(written)}\nto learn classes from these weights: python train.py "
        f"init.path={ckpt_path}, with the same model"
    )


def draw(task: MaskedPretraining, data: VideoDataModule, file: Path) -> bool:
    """Draws a few validation clips: as they are, masked, and reconstructed; returns whether any can be read."""
    videos = data.evaluation_dataset("val", EvalProtocol())
    rows: dict[int, Tensor] = {}
    for row in dict.fromkeys(np.linspace(0, len(videos) - 1, 2 * CLIPS).round().astype(int).tolist()):
        try:
            rows |= {row: videos.load(str(videos.manifest.paths[row]), row)[0]} if len(rows) < CLIPS else {}
        except VideoError:  # It is listed in bad_videos.csv.
            continue
    if not rows:
        return False
    with torch.no_grad():
        shown = reconstructed(task.eval(), torch.stack(list(rows.values())), list(rows))
    names = [printable(str(videos.manifest.ids[row])) for row in rows]
    masked = f"{task.mask_ratio:.0%} of the places masked"
    title = f"validation clips, {masked}; reconstructed tubelets have the mean and contrast of the clip"
    reconstructions(file, list(zip(*shown, strict=True)), names, title)
    return True


def reconstructed(task: MaskedPretraining, clips_BTCHW: Tensor, rows: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns clips as they are, masked as in the validation, and reconstructed.

    Each is float [B, T, C, H, W] in [0, 1]. The model predicts tubelets of mean 0 and variance 1, so mean and
    variance of the pictures are those of the clip.
    """
    predicted_BtmP, _, masked_Bm = task.predict_masked(clips_BTCHW, task.clip_seeds(rows, VALIDATION))
    true = tubelets(task.net, clips_BTCHW / 255)
    places = at_places(true, masked_Bm)
    mean, std = scales(true.gather(2, places))
    hidden = predicted_BtmP.float().unflatten(3, true.shape[3:]) * std + mean
    pictures = (true, true.scatter(2, places, GRAY), true.scatter(2, places, hidden.clamp(0, 1)))
    return tuple(whole_clip(task.net, picture) for picture in pictures)  # type: ignore[return-value]
