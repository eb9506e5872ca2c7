"""Accuracy against labels per class, with and without self-pretraining: docs/small-data.md, docs/pretraining.png.

python train.py task=pretrain data=demo ... hydra.run.dir=runs/pretrained
python benchmarks/few_labels.py runs/pretrained/checkpoints/best.ckpt [--labels 2,5,10] [--seeds 3] WORDS

WORDS are those of train.py, with the same model. Each point is a training on `data.limit_per_class` clips a class,
which the seed draws; the best of its checkpoints on the validation clips is scored on the test clips.
Runs that are in the folder already are not repeated, and an interrupted one goes on.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from vivit_train.build import build_data, resolve_clip
from vivit_train.composition import compose
from vivit_train.run import train
from vivit_train.utils.errors import exit_with_message
from vivit_train.utils.plots import BLUE, GRAY, save, styled
from vivit_train.utils.text import plural

log = logging.getLogger("vivit_train.benchmarks.few_labels")
RANDOM, PRETRAINED = "random weights", "self-pretrained"
VALIDATIONS, WARMUP = 4, 5  # of a training; the warmup is in steps


def score(words: Sequence[str], folder: Path, steps: int) -> float:
    """Trains for about so many optimizer steps, and returns the top-1 accuracy on the test clips."""
    metrics = folder / "metrics.json"
    if not metrics.is_file():
        cfg = compose(*words, run_dir=folder)
        steps_per_epoch = build_data(resolve_clip(cfg)[0]).steps_per_epoch
        epochs = max(1, round(steps / steps_per_epoch))
        every = max(1, epochs // VALIDATIONS)
        length = [f"trainer.max_epochs={epochs // every * every}", f"trainer.check_val_every_n_epoch={every}"]
        length += [f"scheduler.warmup_epochs={WARMUP / steps_per_epoch}"]
        folder.mkdir(parents=True, exist_ok=True)
        train(compose(*words, *length, "resume=auto", run_dir=folder))
    contents = json.loads(metrics.read_text(encoding="utf-8"))
    return float(contents[f"{contents['split']}/top1@{contents['views']}"])


def measure(arguments: argparse.Namespace, words: Sequence[str]) -> dict[tuple[str, int], list[float]]:
    """Returns the accuracies of all seeds by start and labels per class."""
    found: dict[tuple[str, int], list[float]] = {}
    for seed in range(arguments.seeds):
        for labels in map(int, arguments.labels.split(",")):
            for start, init in ((PRETRAINED, [f"init.path={arguments.checkpoint}"]), (RANDOM, [])):
                own = [f"seed={seed}", f"data.limit_per_class={labels}", *init, "eval.report=false"]
                own += ["callbacks.contact_sheet=null", "callbacks.report.curves=null"]
                folder = arguments.out / f"{start.replace(' ', '_')}_{labels}_{seed}"
                top1 = score([*words, *own], folder, arguments.steps)
                found.setdefault((start, labels), []).append(top1)
                log.warning(f"{start}, {plural(labels, 'label')} per class, seed {seed}: {top1:.3f}")
    return found


@styled
def draw(path: Path, found: dict[tuple[str, int], list[float]], data: str, classes: int) -> None:
    """Draws the mean accuracy against labels per class, with a point for each seed."""
    figure = Figure(figsize=(6, 3.6), dpi=110, layout="constrained")
    axis = figure.subplots()
    for start, color in ((RANDOM, GRAY), (PRETRAINED, BLUE)):
        labels = sorted(n for name, n in found if name == start)
        means = [float(np.mean(found[start, n])) for n in labels]
        axis.plot(labels, means, marker="o", markersize=4, color=color, label=start)
        for n in labels:
            axis.scatter([n] * len(found[start, n]), found[start, n], s=10, alpha=0.5, color=color, linewidths=0)
    axis.axhline(1 / classes, color=GRAY, linestyle="--", linewidth=1, label=f"chance, {1 / classes:.3f}")
    axis.set_xscale("log")
    axis.set_xticks(labels, [str(n) for n in labels], minor=False)
    axis.minorticks_off()
    axis.set(xlabel="labeled clips per class", ylabel="test top-1", ylim=(0, 1))
    axis.set_title(f"{data}, {classes} classes from few labels")
    axis.legend(loc="upper left", fontsize=8)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="checkpoint of task=pretrain")
    parser.add_argument("--labels", default="2,5,10,25,100", help="labels per class")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--steps", type=int, default=150, help="optimizer steps of a training, about")
    parser.add_argument("--out", type=Path, default=Path("runs/few_labels"), help="folder of the runs")
    parser.add_argument("--picture", type=Path, default=Path("docs/pretraining.png"), help="output file")
    arguments, words = parser.parse_known_args()
    found = measure(arguments, words)
    data = build_data(resolve_clip(compose(*words, run_dir=arguments.out))[0])
    (classes,) = data.splits.classes.values()
    draw(arguments.picture, found, str(data.name), len(classes))
    rows = [
        f"| {start} | {n} | {np.mean(scores):.3f} | {', '.join(f'{x:.3f}' for x in scores)} |"
        for (start, n), scores in found.items()
    ]
    log.warning("\n".join(["| start | labels | mean | seeds |", "|---" * 4 + "|", *rows]))


if __name__ == "__main__":
    exit_with_message(main)
