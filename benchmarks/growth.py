"""Plot how the time and memory of the four models grow with frames and resolution, measured and expected.

python benchmarks/growth.py data=kinetics400 model.size=Ti [--picture growth.png] [--frames 8,16,32] [--crops 112]
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from omegaconf import OmegaConf

from vivit_train.models.vivit import MODELS
from vivit_train.tools.bench.model import DTYPES, MODES, Cell, Row, bench, machine, on_meta, usable
from vivit_train.tools.overrides import compose_words
from vivit_train.training.profiling import forward_flops
from vivit_train.utils.errors import exit_with_message
from vivit_train.utils.plots import save

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
    """Return the measurements by axis and model, for `growth_curves`."""
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


def growth_curves(
    path: Path,
    curves: Mapping[tuple[str, str], Sequence[tuple[int, float, float, float]]],
    orders: Mapping[str, str],
    title: str,
) -> None:
    """Draws time and memory (rows) against frames and crop (columns) on logarithmic axes.

    Dashed lines show the expected number of operations, scaled to the last measured time.

    Args:
        path: The output file.
        curves: Points of (value, seconds, bytes, operations) by axis and model.
        orders: The expected growth of the operations of each model, as text.
        title: The title of the figure.
    """
    figure = Figure(figsize=(10, 7.2), dpi=110, layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    for column, axis in enumerate(dict.fromkeys(axis for axis, _ in curves)):
        for number, (model, order) in enumerate(orders.items()):
            values, seconds, sizes, operations = zip(*curves.get((axis, model)) or [(0,) * 4], strict=True)
            if not any(values):
                continue
            color = f"C{number}"
            panels[0, column].plot(
                values, seconds, color=color, marker="o", markersize=4, label=f"{model}: {order}"
            )
            expected = [seconds[-1] * count / operations[-1] for count in operations]
            panels[0, column].plot(values, expected, color=color, linestyle="--", linewidth=1)
            panels[1, column].plot(values, [size / 1e9 for size in sizes], color=color, marker="o", markersize=4)
        for row in range(2):
            panels[row, column].set(xscale="log", yscale="log")
            panels[row, column].grid(alpha=0.3, which="both")
        ticks = sorted({point[0] for (name, _), points in curves.items() if name == axis for point in points})
        panels[1, column].set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        panels[1, column].minorticks_off()
        panels[1, column].set_xlabel({"frames": "frames", "crop": "crop (pixels per side)"}[axis])
    panels[0, 0].set_ylabel("seconds per step")
    panels[1, 0].set_ylabel("peak memory (GB)")
    panels[0, 0].legend(title="dashed: expected operations", fontsize=8, title_fontsize=8)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="overrides as for train.py")
    parser.add_argument("--picture", type=Path, default=Path("growth.png"), help="PNG file for the plot")
    parser.add_argument(
        "--frames", type=numbers, default=[8, 16, 32, 64, 128], help="numbers of frames to measure"
    )
    parser.add_argument("--crops", type=numbers, default=[112, 160, 224, 320], help="crop sizes in pixels")
    parser.add_argument("--mode", choices=MODES, default="train")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each, of which the median counts")
    args = parser.parse_intermixed_args()
    nodes: dict[str, Any] = {}
    for name in MODELS:
        cfg = compose_words([*args.overrides, f"model={name}"], Path("runs/bench"))
        nodes[name] = OmegaConf.to_container(cfg.model, resolve=True)
    points = []
    measured = growth(
        nodes,
        args.frames,
        args.crops,
        mode=args.mode,
        dtype=args.dtype,
        device=usable(args.device),
        rounds=args.rounds,
    )
    for point in measured:
        points.append(point)
        growth_curves(args.picture, curves(points), ORDERS, title(points))
    print("\n".join([title(points), "", table(points), "", f"written: {args.picture}"]))


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    exit_with_message(main)
