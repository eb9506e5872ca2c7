"""`vivit bench growth`: plot how the time and memory of the four models grow with frames and resolution."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vivit_train.tools.bench.model import Cell, Row, bench, machine, on_meta
from vivit_train.training.profiling import forward_flops

# These are the expected orders of growth of a forward pass over t time steps with n tokens each. The term t n is
# for the matrix products with weights, the other terms are for attention.
ORDERS = {
    "vivit_st": "t n + (t n)²",
    "vivit_fe": "t n + t n² + t²",
    "vivit_fsa": "t n + t n² + t² n",
    "vivit_fdp": "t n + t n² + t² n",
}


@dataclass(frozen=True)
class Point:
    """The measurement of one model on a clip of a given size.

    Attributes:
        axis: "frames" or "crop": the quantity that varies.
        model: Name of the model.
        value: Number of frames or crop size in pixels.
        flops: Floating-point operations of a forward pass.
        row: Measured time and memory.
    """

    axis: str
    model: str
    value: int
    flops: int
    row: Row


def growth(
    models: Mapping[str, Mapping[str, Any]],
    frames: Sequence[int],
    crops: Sequence[int],
    *,
    mode: str,
    dtype: str,
    device: str,
    rounds: int,
) -> Iterator[Point]:
    """Measure models while varying their number of frames, and then while varying their crop size.

    Args:
        models: Mapping of names of models to the `model` node of a configuration.
        frames: Numbers of frames to measure.
        crops: Crop sizes to measure, in pixels.
        mode: One of `MODES` of bench.model.
        dtype: One of `DTYPES` of bench.model.
        device: "cpu" or "cuda".
        rounds: Number of timed steps, of which the median counts.

    Raises:
        UserError: A model cannot be built.
    """
    axes = {"frames": ("frames", frames), "crop": ("image_size", crops)}
    points = [(axis, name, value) for axis in axes for value in axes[axis][1] for name in models]
    nodes = [{**models[name], axes[axis][0]: value} for axis, name, value in points]
    flops = [forward_flops(on_meta(node)) for node in nodes]  # This fails early if a model cannot be built.
    cells = [Cell(json.dumps(node), mode, dtype, 1, device, ("sdpa",), rounds) for node in nodes]
    for row in bench(cells):  # A model with its own frames and crop is measured once but is on both axes.
        for (axis, name, value), operations, cell in zip(points, flops, cells, strict=True):
            if cell == row.cell:
                yield Point(axis, name, value, operations, row)


def table(points: Sequence[Point]) -> str:
    """Format the results in Markdown, with the growth of time and operations since the previous value."""
    lines = [
        "| model | axis | value | forward GFLOPs | s/step | peak MB | growth of operations | growth of time |",
        "|---" * 8 + "|",
    ]
    before: dict[tuple[str, str], Point] = {}
    for point in sorted(points, key=lambda point: (point.axis, point.model, point.value)):
        cells = [point.model, point.axis, str(point.value), f"{point.flops / 1e9:.4g}"]
        if point.row.failure:
            lines.append(f"| {' | '.join(cells)} | {point.row.failure} | | | |")
            continue
        speed, last = point.row.speeds["sdpa"], before.get((point.axis, point.model))
        cells += [f"{speed.step_s:.3g}", f"{speed.peak_bytes / 1e6:.0f}"]
        if last:
            grown = point.flops / last.flops, speed.step_s / last.row.speeds["sdpa"].step_s
            cells += [f"x {times:.2f}" for times in grown]
        else:
            cells += ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
        before[point.axis, point.model] = point
    return "\n".join(lines)


def curves(points: Sequence[Point]) -> dict[tuple[str, str], list[tuple[int, float, float, float]]]:
    """Return the measurements by axis and model, for `plots.growth_curves`."""
    found: dict[tuple[str, str], list[tuple[int, float, float, float]]] = {}
    for point in points:
        if not point.row.failure:
            speed = point.row.speeds["sdpa"]
            measured = (point.value, speed.step_s, speed.peak_bytes, point.flops)
            found.setdefault((point.axis, point.model), []).append(measured)
    return found


def title(points: Sequence[Point]) -> str:
    cell = points[0].row.cell
    size = json.loads(cell.model)["size"]
    return f"{cell.mode}, {cell.dtype}, one clip, size {size}; {machine(cell.device)}"
