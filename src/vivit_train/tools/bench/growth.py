"""`vivit bench growth`: how the four models' time and memory grow with frames and resolution, as a picture."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vivit_train.tools.bench.model import Cell, Row, bench, machine, on_meta
from vivit_train.training.profiling import forward_flops

# Of a forward pass, t time indices of n places; the products with weights take t n in all four.
ORDERS = {
    "vivit_st": "t n + (t n)²",
    "vivit_fe": "t n + t n² + t²",
    "vivit_fsa": "t n + t n² + t² n",
    "vivit_fdp": "t n + t n² + t² n",
}


@dataclass(frozen=True)
class Point:
    """One clip of so many frames, or of such a crop ("frames", "crop")."""

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
    """Measures a clip against its frames, at the crop that the models have, and against its crop, at their frames.

    Args:
        models: by name the `model` node of a configuration.

    Raises:
        UserError: one of them cannot be built.
    """
    axes = {"frames": ("frames", frames), "crop": ("image_size", crops)}
    points = [(axis, name, value) for axis in axes for value in axes[axis][1] for name in models]
    nodes = [{**models[name], axes[axis][0]: value} for axis, name, value in points]
    flops = [forward_flops(on_meta(node)) for node in nodes]  # first, as it finds out what cannot be built
    cells = [Cell(json.dumps(node), mode, dtype, 1, device, ("sdpa",), rounds) for node in nodes]
    for row in bench(cells):  # the models as they are stand on both axes
        for (axis, name, value), operations, cell in zip(points, flops, cells, strict=True):
            if cell == row.cell:
                yield Point(axis, name, value, operations, row)


def table(points: Sequence[Point]) -> str:
    """In Markdown: seconds and peak memory, and by how much time and operations grew since the value before."""
    lines = [
        "| | | value | GFLOPs, forward | s a step | peak MB | operations grew | time grew |",
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
    """For `pictures.growth_curves`: by axis and model what was measured."""
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
