"""`vivit replay FILE`: repeat a training step that was not finite and locate the first NaN or inf."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vivit_train.training.cached import CachedClassifier
from vivit_train.training.callbacks import caption
from vivit_train.training.checkpoint import load_checkpoint, read_checkpoint, restore_net
from vivit_train.training.module import VideoClassifier
from vivit_train.training.nonfinite import REPLAY, SavedBatch, clip_text, inputs_of, is_finite
from vivit_train.training.targets import LOSSES, build
from vivit_train.utils.errors import UserError, reason
from vivit_train.utils.files import replacing
from vivit_train.utils.plots import contact_sheet
from vivit_train.utils.text import plural

log = logging.getLogger(__name__)


MOST_CLIPS = 16  # The contact sheet shows at most this many clips.


class Watch:
    """Records the first non-finite output and gradient of a network during a forward and a backward pass.

    Attributes:
        output: Description of the first module, in the order of computation, whose output is not finite. It is ""
            while all outputs are finite.
        gradient: Name of the first parameter, in the order of the backward pass, whose gradient is not finite. It
            is "" while all gradients are finite.
        largest: Largest absolute value of the outputs before the first non-finite one, and the name of its module.
    """

    def __init__(self) -> None:
        self.output = self.gradient = ""
        self.largest = (0.0, "")

    @contextmanager
    def on(self, net: nn.Module) -> Iterator[None]:
        hooks: list[Any] = [
            module.register_forward_hook(partial(self.see_output, name)) for name, module in net.named_modules()
        ]
        hooks += [
            parameter.register_post_accumulate_grad_hook(partial(self.see_gradient, name))
            for name, parameter in net.named_parameters()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def see_output(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if self.output or not isinstance(output, Tensor):
            return
        if output.isfinite().all():
            self.largest = max(self.largest, (float(output.detach().abs().max()), name))
            return
        kind = "nan" if output.isnan().any() else "inf"
        before = all(x.isfinite().all() for x in inputs if isinstance(x, Tensor))
        origin = "from a finite input" if before else "from an input that is not finite"
        self.output = f"{name or 'the whole model'} outputs {kind} {origin}"

    def see_gradient(self, name: str, parameter: Tensor) -> None:
        if not self.gradient and parameter.grad is not None and not parameter.grad.isfinite().all():
            self.gradient = name


def replay(file: Path, sheet: Path, trusted: Sequence[str] = ()) -> None:
    """Repeat a saved step in float32, one micro-batch at a time, and report where the first NaN or inf appears.

    The report names the first module and parameter and the clips with non-finite logits. The contact sheet shows
    these clips, or all clips if every logit is finite.

    Args:
        file: File that `nonfinite.NonFiniteGuard` has saved. Nothing in it is executed.
        sheet: Path of the contact sheet.
        trusted: Packages that may define the model; see `checkpoint.restore_net`.

    Raises:
        UserError: The file does not hold a step.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    step = read_checkpoint(file, mmap=True).get(REPLAY)
    if step is None:
        raise UserError(f"{file} holds no step to replay; the files in a run's nonfinite/ folder do")
    try:
        task = rebuilt(file, trusted)
        micro_batches = step["micro_batches"]
        log.info(f"step {step['step']}, epoch {step['epoch']}, process {step['rank'] + 1} of {step['processes']}")
        log.info(f"the run: {step['precision']} on {step['device']}, gradient norm {step['gradient_norm']:g}")
        other = (
            ", so mixing and stochastic depth draw different random numbers"
            if task.device.type != step["device"]
            else ""
        )
        log.info(f"here: float32 on {task.device.type}{other}")
        bad = [name for name, weight in task.net.named_parameters() if not weight.isfinite().all()]
        if bad:
            tensors = plural(len(bad), "parameter tensor")
            log.info(f"not finite before the step: {tensors}, the first is {bad[0]}")
        suspects: list[tuple[SavedBatch, int]] = []  # Each entry is a micro-batch and the index of a clip in it.
        finite = not bad
        for i, batch in enumerate(micro_batches):
            log.info(f"micro-batch {i + 1} of {len(micro_batches)}, {plural(len(batch['label']), 'clip')}:")
            fine, clips = repeat(task, batch)
            finite &= fine
            suspects += [(batch, b) for b in clips]
        if finite:
            log.info(
                "everything is finite in float32. Either a value overflowed in the precision of the run (the "
                "maximum of float16 is 65504), or only the sum over micro-batches or processes is too large"
            )
        suspects = suspects or [(batch, b) for batch in micro_batches for b in range(len(batch["label"]))]
        if not task.reads_videos:
            log.info("no contact sheet: the step was trained from stored features (cache=true)")
            return
        draw(sheet, task, suspects[:MOST_CLIPS])
        log.info(f"written: {sheet}, {min(len(suspects), MOST_CLIPS)} of {len(suspects)} clips")
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError) as error:
        raise UserError(f"{file} does not hold a valid step: {reason(error)}") from error


def rebuilt(file: Path, trusted: Sequence[str]) -> VideoClassifier:
    """Rebuild the model of a saved step in training mode, on the GPU if there is one."""
    metadata, weights = load_checkpoint(file)
    settings = metadata.config
    offered: dict[str, Any] = {"multi_label": True} if metadata.multi_label else {}
    cached = settings.get("cache") is True and settings.get("train") in ("head", "temporal")
    build_task: Any = partial(CachedClassifier, train=settings["train"]) if cached else VideoClassifier
    task: VideoClassifier = build_task(
        restore_net(metadata, weights, file, trusted, allow_nonfinite=True),
        metadata.classes,
        metadata.mean,
        metadata.std,
        multi_label=metadata.multi_label,
        loss=[
            build(
                settings["loss"],
                LOSSES,
                f"{file}: loss",
                trusted,
                offered | {"class_counts": metadata.class_counts.get(head, ())},
            )
            for head in metadata.classes
        ],
        mixup=float(settings["mixup"]),
        cutmix=float(settings["cutmix"]),
    )
    return task.to("cuda" if torch.cuda.is_available() else "cpu").train()


def repeat(task: VideoClassifier, batch: SavedBatch) -> tuple[bool, list[int]]:
    """Repeat the forward and backward pass of one micro-batch with its original random seed.

    Returns:
        Whether everything is finite, and the indices of the clips whose logits are not.
    """
    on_device: Any = {name: x.to(task.device) for name, x in inputs_of(batch).items()}
    watch = Watch()
    task.zero_grad()
    torch.manual_seed(int(batch["seed"]))
    with watch.on(task.net):
        video_BCTHW, target = task.training_input(on_device)
        logits_BK = task.logits(video_BCTHW)
        loss = task.loss(logits_BK, target)
        loss.backward()
    if watch.output:
        log.info(
            f"  forward: {watch.output}; the largest value before: {watch.largest[0]:.3g} in {watch.largest[1]}"
        )
    else:
        log.info(f"  forward: finite; the largest value: {watch.largest[0]:.3g} in {watch.largest[1]}")
    log.info(f"  loss: {loss.item():g} here, {batch['loss']:g} in the run")
    log.info(f"  backward: {f'not finite, first at {watch.gradient}' if watch.gradient else 'finite'}")
    clips = [b for b, logits_K in enumerate(logits_BK) if not logits_K.isfinite().all()]
    for b, (path, frames) in enumerate(zip(batch["paths"], batch["frame_numbers"], strict=True)):
        log.info(f"  clip {b + 1}: {clip_text(path, frames)}{' <- logits are not finite' if b in clips else ''}")
    return is_finite(loss.item()) and not watch.output and not watch.gradient, clips


def draw(sheet: Path, task: VideoClassifier, suspects: list[tuple[SavedBatch, int]]) -> None:
    """Draw a contact sheet of the clips, after augmentation and before mixing."""
    captions = []
    for batch, b in suspects:
        targets = [part[0] for part in task.by_head(batch["label"][b : b + 1])]
        captions.append(f"{batch['paths'][b]}: {' | '.join(map(caption, targets, task.classes.values()))}")
    pixels, frame_numbers, times_s = (
        torch.stack([batch[name][b] for batch, b in suspects]) for name in ("video", "frame_numbers", "times_s")
    )
    with replacing(sheet) as part:  # A link next to a stranger's file could lead to any file.
        contact_sheet(part, pixels / 255, captions, frame_numbers, times_s)
