"""Compares the throughput of `vivit predict` with that of its loader alone and of its model alone.

    python benchmarks/predict.py CKPT VIDEO... [--workers 1] [--rounds 5] [--views 1x1]

The three alternate, so that other load on the machine affects all of them. Each pass reads all videos and starts
its loader processes anew. On a CPU, leave a core to each loader process: OMP_NUM_THREADS=<cores - workers>.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from vivit_train.tools.predict.sources import find_clips
from vivit_train.video_model import clip_table, load


def measure(work: Callable[[], int]) -> float:
    """Returns the videos per second of one pass."""
    start_s = time.perf_counter()
    videos = work()
    return videos / (time.perf_counter() - start_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--views", default="1x1")
    given = parser.parse_args()
    model = load(given.checkpoint)
    clips = clip_table([clip.path for clip in find_clips(given.videos)])
    loading = {"views": given.views, "num_workers": given.workers}
    batches = list(model.batches(clips, **loading))

    passes: dict[str, Callable[[], int]] = {
        "loader": lambda: sum(len(batch["index"]) for batch in model.batches(clips, **loading)),
        "model": lambda: sum(len(model.mean_over_views(model.task.logits, batch["video"])) for batch in batches),
        "predict": lambda: len(list(model.stream(clips, **loading))),
    }
    rates: dict[str, list[float]] = {name: [] for name in passes}
    for turn in range(given.rounds + 1):
        for name, work in passes.items():
            rate = measure(work)
            if turn:  # The first round fills the page cache.
                rates[name].append(rate)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    shown = ", ".join(f"{name} {rate:.3g}" for name, rate in medians.items())
    slower = min(medians["loader"], medians["model"])
    print(f"{len(clips)} videos on {model.device}, {given.workers} workers; videos per second: {shown}")
    print(f"predict / slower of loader and model: {medians['predict'] / slower:.2f}")


if __name__ == "__main__":
    main()
