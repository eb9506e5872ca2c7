"""Explains the predictions of a model for videos, on a page and in videos."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vivit_train.models.probe import FrameProbe
from vivit_train.models.relevance import Method, relevance
from vivit_train.predictions import best_labels
from vivit_train.tools.explain.pictures import (
    animated,
    frame_ms,
    frame_shares,
    heat_of,
    overlaid,
    side_by_side,
    still,
    write_video,
)
from vivit_train.utils.errors import UserError, interrupted
from vivit_train.utils.page import render
from vivit_train.utils.progress import progress
from vivit_train.utils.text import file_stem, plural, printable, shorten_list
from vivit_train.video_model import VideoModel, clip_table

log = logging.getLogger(__name__)

FILM = 16  # frames of the film strip
METHODS = {
    "gradient": "attention times its gradient (arXiv 2103.15679), for the class that is named",
    "rollout": "attention rollout (arXiv 2005.00928), which is the same for every class",
}


def explain(
    model: VideoModel,
    checkpoint: str,
    videos: Sequence[str],
    out: Path,
    *,
    class_name: str | None = None,
    method: Method = "gradient",
) -> bool:
    """Writes index.html and a heat map per video to a new folder; returns whether all videos could be read.

    Args:
        model: The model.
        checkpoint: Its source, for the page.
        videos: The paths or URLs of the videos.
        out: The folder, which must not exist or be empty.
        class_name: The class to explain; None is the predicted one.
        method: See `relevance`.

    Raises:
        StoppedError: Ctrl-C; the page has the videos so far.
        UserError: The folder holds something, the class is unknown, no video can be read, or the method has
            nothing to show of this model.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists: choose another folder for --out")
    net = model.task.net
    if isinstance(net, FrameProbe) and not net.passes:
        raise UserError(f"{checkpoint}: it is a probe that sees only motion, so there is no attention to show")
    if isinstance(net, FrameProbe) and method == "rollout":
        raise UserError(
            f"--method rollout: {checkpoint} is a probe, whose head weighs many tokens, and rollout treats them "
            "as equal, so its map would be flat: use --method gradient"
        )
    classes = chosen_classes(model, class_name)
    sections: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    try:
        explain_each(model, videos, out, classes, method, sections, failed)
    except KeyboardInterrupt:
        where = f"; their page is {out}/index.html" if sections else ""
        raise interrupted(f"{len(sections)} of {plural(len(videos), 'video')} are done{where}") from None
    finally:
        if sections:
            title = "Where and when the model looks"
            page = render("explain.html", title, subtitle=checkpoint, method=METHODS[method], sections=sections)
            (out / "index.html").write_text(page, encoding="utf-8")
    for path, why in failed.items():
        log.error(f"error: {printable(path)}: {why}")
    if not sections:
        raise UserError(f"{shorten_list(videos)}: no video can be read")
    log.info(f"written: {out}/index.html, {plural(len(sections), 'heat map')} (.mp4)")
    return not failed


def explain_each(
    model: VideoModel,
    videos: Sequence[str],
    out: Path,
    classes: Sequence[int | None],
    method: Method,
    sections: list[dict[str, Any]],
    failed: dict[str, str],
) -> None:
    """Writes the heat map of each video, and appends what the page says to `sections` or why not to `failed`."""
    with progress("explaining", len(videos)) as step:
        for batch in model.batches(clip_table(videos), batch_size=1):
            failed.update({path: why for _, path, why in batch["errors"]})
            for row, views in zip(batch["index"].tolist(), batch["video"], strict=True):
                if videos[row] not in failed:
                    name = f"{len(sections) + 1}_{file_stem(Path(videos[row]).stem)}.mp4"
                    section = {"file": name} | explained(model, videos[row], views[0], classes, method)
                    out.mkdir(parents=True, exist_ok=True)
                    write_heat(out / name, section)
                    sections.append(section)
                step(row + 1, "")


def chosen_classes(model: VideoModel, name: str | None) -> list[int | None]:
    """Returns the class id of each head to explain, or None for the predicted class.

    Raises:
        UserError: No head has a class of that name.
    """
    if name is None:
        return []
    if not any(name in names for names in model.classes.values()):
        known = shorten_list([name for names in model.classes.values() for name in names], 8)
        raise UserError(f"--class {name}: the model knows {known}")
    return [names.index(name) if name in names else None for names in map(list, model.classes.values())]


def explained(
    model: VideoModel, video: str, clip_TCHW: Tensor, classes: Sequence[int | None], method: Method
) -> dict[str, Any]:
    """Returns what the page says about a clip."""
    task = model.task
    video_BCTHW = task.normalise(clip_TCHW[None].to(model.device)).transpose(1, 2)
    found, logits = relevance(task.net, video_BCTHW, classes, method)
    heat_THW = heat_of(found[0].cpu(), len(clip_TCHW), *clip_TCHW.shape[-2:])
    plain, heat = overlaid(clip_TCHW, heat_THW)
    shares = frame_shares(heat_THW)
    shown = sorted(set(np.linspace(0, len(plain) - 1, min(FILM, len(plain))).round().astype(int).tolist()))
    labels = best_labels(logits[0].cpu(), model.classes, multi_label=model.multi_label, top=5)
    chosen = [names[k] for names, k in zip(model.classes.values(), classes, strict=False) if k is not None]
    (*_, best) = labels.values()
    return {
        "video": video,
        "predicted": best[0].name,
        "explained": " ".join(chosen) or best[0].name,
        "labels": {head or "class": of_head for head, of_head in labels.items()},
        "picture": animated(side_by_side(plain, heat), frame_ms(len(plain))),
        "film": [(still(heat[t]), t + 1, float(shares[t] / shares.max())) for t in shown],
        "heat": heat,
        "shares": shares,
    }


def write_heat(file: Path, section: dict[str, Any]) -> None:
    """Writes the heat map of a clip as a video."""
    heat = section["heat"]
    write_video(file, heat, section["shares"], frame_ms(len(heat)))
