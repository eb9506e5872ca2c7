"""`vivit bench model`: measure the throughput and peak memory of a model and find its bottleneck."""

import json
import logging
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from vivit_train.models.vivit import ViViT
from vivit_train.training.checkpoint import build_net
from vivit_train.training.profiling import FORWARD_AND_BACKWARD, forward_flops, matmul_peak, peak_bytes, shares
from vivit_train.utils.errors import UserError
from vivit_train.utils.process_pool import Failure, run_isolated
from vivit_train.utils.text import plural

log = logging.getLogger(__name__)

MODES = ("train", "infer")
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Attention is computed step by step (eager), by fused kernels (sdpa), or by these with torch.compile (compiled).
VARIANTS = ("eager", "sdpa", "compiled")
LIMIT_S = 3600.0  # This is the time limit of one cell.


@dataclass(frozen=True)
class Cell:
    """The work of one child process: it measures the variants alternately, on the same weights and clips.

    Attributes:
        model: The `model` node of a configuration, as JSON.
        mode: One of `MODES`.
        dtype: A key of `DTYPES`. Precisions other than float32 use autocast.
        batch: Number of clips per step.
        device: "cpu" or "cuda".
        variants: Some of `VARIANTS`. The first one is the baseline.
        rounds: Number of timed steps per variant after one warm-up step. The median counts.
        classes: Number of classes.
    """

    model: str
    mode: str
    dtype: str
    batch: int
    device: str
    variants: tuple[str, ...]
    rounds: int
    classes: int = 400


@dataclass(frozen=True)
class Speed:
    """The speed and memory of one variant.

    Attributes:
        step_s: Median time of a step in seconds.
        first_s: Time of the first step in seconds, including compilation.
        peak_bytes: Peak memory in bytes; see `profiling.peak_bytes`.
        mfu: Model FLOPs utilization, as a fraction of `matmul_peak` in this precision.
    """

    step_s: float
    first_s: float
    peak_bytes: int
    mfu: float


@dataclass(frozen=True)
class Row:
    """The result of a cell.

    Attributes:
        cell: The cell.
        speeds: Speed of each variant.
        matmul_tflops: Speed of a large matrix product in TFLOP/s.
        shares: Time of the fastest variant by kind of operation, as fractions of the step.
        top: Most expensive operations of the fastest variant, with their fractions of the time.
        failure: Reason why the cell could not be measured, otherwise "".
    """

    cell: Cell
    speeds: dict[str, Speed] = field(default_factory=dict)
    matmul_tflops: float = 0.0
    shares: dict[str, float] = field(default_factory=dict)
    top: list[tuple[str, float]] = field(default_factory=list)
    failure: str = ""

    @property
    def fastest(self) -> str:
        return min(self.speeds, key=lambda name: self.speeds[name].step_s)


def measure_cell(cell: Cell) -> Row:
    """Measure a cell in this process."""
    device, dtype = torch.device(cell.device), DTYPES[cell.dtype]
    torch.manual_seed(0)
    peak = matmul_peak(device, dtype)
    net = build_net(json.loads(cell.model), {"": [""] * cell.classes}).to(device)
    net.train(cell.mode == "train")
    flops = cell.batch * forward_flops(net) * (FORWARD_AND_BACKWARD if cell.mode == "train" else 1)
    video_BCTHW = torch.rand(cell.batch, *net.input_shape, device=device) * 2 - 1
    optimizer = plain_sgd(net)
    compiled = torch.compile(net, fullgraph=True, dynamic=True) if "compiled" in cell.variants else net

    def step(variant: str) -> float:
        net.use_eager_attention(variant == "eager")
        forward = compiled if variant == "compiled" else net
        finish(device)
        start_s = time.perf_counter()
        if cell.mode == "train":
            train(forward, optimizer, video_BCTHW, dtype)
        else:
            infer(forward, video_BCTHW, dtype)
        finish(device)
        return time.perf_counter() - start_s

    first_s = {variant: step(variant) for variant in cell.variants}
    steps: dict[str, list[float]] = {variant: [] for variant in cell.variants}
    for turn in range(cell.rounds):
        for variant in cell.variants if turn % 2 == 0 else reversed(cell.variants):
            steps[variant].append(step(variant))
    median_s = {variant: statistics.median(seconds) for variant, seconds in steps.items()}
    state = [value for group in optimizer.state.values() for value in group.values() if torch.is_tensor(value)]
    held = [video_BCTHW, *net.parameters(), *net.buffers(), *state]
    speeds = {
        variant: Speed(s, first_s[variant], peak_bytes(partial(step, variant), held, device), flops / s / peak)
        for variant, s in median_s.items()
    }
    where, top = shares(partial(step, min(median_s, key=median_s.__getitem__)), device)
    return Row(cell, speeds, peak / 1e12, where, top)


Forward = Callable[[Tensor], Any]


def in_precision(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Return an autocast context for a precision. It does nothing for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def plain_sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, fused=True)


def train(forward: Forward, optimizer: torch.optim.Optimizer, video: Tensor, dtype: torch.dtype) -> None:
    """Run one training step. The labels cycle through the classes."""
    with in_precision(dtype, video.device):
        logits_BK = forward(video)
    label_B = torch.arange(len(video), device=video.device) % logits_BK.shape[1]
    F.cross_entropy(logits_BK.float(), label_B).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def infer(forward: Forward, video: Tensor, dtype: torch.dtype) -> None:
    with torch.inference_mode(), in_precision(dtype, video.device):
        forward(video)


def finish(device: torch.device) -> None:
    """Wait until the GPU has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bench(cells: Sequence[Cell]) -> Iterator[Row]:
    """Measure the cells one after another and yield each result at once, with the progress in the log.

    A child process measures the cells. If the system kills it for lack of memory, a new process measures the next
    cell. Identical cells are measured once.
    """
    jobs = dict.fromkeys(cells, LIMIT_S)
    os.environ |= {"KINETO_LOG_LEVEL": "6", "TORCH_CPP_LOG_LEVEL": "ERROR"}  # This silences the profiler.
    start_s = time.monotonic()
    with closing(run_isolated(measure_cell, jobs, workers=1)) as results:
        for number, (cell, row) in enumerate(results, 1):
            left_s = (time.monotonic() - start_s) / number * (len(jobs) - number)
            what = f"{json.loads(cell.model)['model']} {cell.mode} {cell.dtype}, clips: {cell.batch}"
            log.info(f"{number} of {len(jobs)}: {what}; {left_s:.0f} s left")
            yield Row(cell, failure=why(row)) if isinstance(row, Failure) else row


def why(failure: Failure) -> str:
    lack = "SIGKILL" in failure.detail or "memory" in failure.detail.lower()
    return "out of memory" if lack else failure.detail


def cells(
    model: DictConfig,
    *,
    batches: Sequence[int],
    modes: Sequence[str],
    dtypes: Sequence[str],
    variants: Sequence[str],
    device: str,
    rounds: int,
) -> list[Cell]:
    """Return the cells for every combination of mode, precision and batch size of one `model` node.

    Raises:
        UserError: The model cannot be built.
    """
    node: Any = OmegaConf.to_container(model, resolve=True)
    node["compile"] = False  # Compilation is one of the variants.
    on_meta(node)
    return [
        Cell(json.dumps(node), mode, dtype, batch, device, tuple(variants), rounds)
        for mode, dtype, batch in product(modes, dtypes, batches)
    ]


def on_meta(node: Mapping[str, Any], classes: int = 400) -> ViViT:
    """Build the model of a `model` node on the meta device, without allocating memory.

    Raises:
        UserError: The model cannot be built.
    """
    try:
        with torch.device("meta"):
            return build_net(node, {"": [""] * classes})
    except InstantiationException as error:
        why = str(error.__cause__ or error)  # The message of Hydra itself only tells the location.
        raise UserError(f"{node['model']} cannot be built: {why}") from error


def usable(device: str) -> str:
    """Resolve "auto" to an available device, or check that the given device is available.

    Raises:
        UserError: The device is unknown or not available.
    """
    there = torch.cuda.is_available()
    if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not there):
        raise UserError(
            f"--device {device}: " + ("no GPU found" if device == "cuda" else "must be cpu, cuda or auto")
        )
    return "cuda" if there and device != "cpu" else "cpu"


def about(rows: Sequence[Row]) -> str:
    """Describe the model and the machine in one line."""
    cell = rows[0].cell
    net = json.loads(cell.model)
    what = f"{net['model']} {net['size']}, {net['frames']} frames of {net['image_size']}, tubelet {net['tubelet']}"
    return f"{what}; {machine(cell.device)}, {plural(cell.rounds, 'round')}"


def machine(device: str) -> str:
    """Describe a device and the version of torch."""
    return f"{device_name(device)}, torch {torch.__version__.partition('+')[0]}"


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def table(rows: Sequence[Row]) -> str:
    """Format the rows in Markdown, with the speed and memory of the later variants relative to the first."""
    first, *others = rows[0].cell.variants
    head = ["mode", "precision", "clips", *(f"{name}, clips/s" for name in (first, *others))]
    head += [f"{name} / {first}, speed" for name in others]
    head += [f"{first}, peak MB", *(f"{name} / {first}, memory" for name in others)]
    head += ["MFU", "attention / matrix products / rest"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cell = row.cell
        cells = [cell.mode, cell.dtype, str(cell.batch)]
        if row.failure:
            lines.append(f"| {' | '.join(cells)} | {row.failure} {'|' * (len(head) - 3)}")
            continue
        of = row.speeds[first]
        cells += [f"{cell.batch / row.speeds[name].step_s:.3g}" for name in (first, *others)]
        cells += [f"{of.step_s / row.speeds[name].step_s - 1:+.0%}" for name in others]
        cells += [f"{of.peak_bytes / 1e6:.0f}"]
        cells += [f"{row.speeds[name].peak_bytes / of.peak_bytes:.2f}" for name in others]
        cells += [
            f"{row.speeds[row.fastest].mfu:.0%}",
            " / ".join(f"{share:.0%}" for share in row.shares.values()),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def limits(rows: Sequence[Row]) -> str:
    """Describe the bottleneck of the fastest variant of the last measured cell."""
    row = next((row for row in reversed(rows) if not row.failure), None)
    if row is None:
        return "nothing could be measured"
    kind, share = max(row.shares.items(), key=lambda item: item[1])
    reached = row.speeds[row.fastest].mfu
    meaning = {
        "attention": "fewer tokens (data.frames, data.crop) or a factorized model reduce it",
        "matrix products": "the core work of the model; lower precision is faster if the device supports it",
        "rest": "limited by memory bandwidth; compilation and larger batches help",
    }[kind]
    return (
        f"Bottleneck of {row.cell.mode} in {row.cell.dtype} with {plural(row.cell.batch, 'clip')}: {kind}, "
        f"{share:.0%} of the time ({meaning}). MFU is {reached:.0%} of {row.matmul_tflops:.3g} TFLOP/s, the speed "
        "of a large matrix product on this device in the same run."
    )


def save(rows: Sequence[Row], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    about = {"torch": torch.__version__, "device": device_name(rows[0].cell.device)}
    file.write_text(json.dumps(about | {"rows": [asdict(row) for row in rows]}, indent=2) + "\n", encoding="utf-8")


def numbers(option: str, text: str) -> list[int]:
    """Return the numbers in the value of an option; raise a UserError if it has another form."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise UserError(f"{option} {text}: expected comma-separated numbers, such as 1,2,4")
    return [int(number) for number in text.split(",")]


def choices(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words in the value of an option; raise a UserError if one of them is not known."""
    chosen = tuple(text.split(","))
    if unknown := [name for name in chosen if name not in known]:
        raise UserError(f"{option} {text}: '{unknown[0]}' is not one of {', '.join(known)}")
    return chosen
