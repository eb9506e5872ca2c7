"""Compares the throughput of `vivit predict` with that of its loader alone and of its model alone.

    python benchmarks/predict.py CKPT VIDEO... [--workers 1] [--rounds 5] [--views 1x1]

The three alternate, so that other load on the machine affects all of them. Each pass reads all videos and starts
its loader processes anew. On a CPU, leave a core to each loader process: OMP_NUM_THREADS=<cores - workers>.
"""

import argparse
import gc
import resource
import statistics
import time
from collections.abc import Callable

from vivit_train.loading import load
from vivit_train.tools.predict.sources import find_clips
from vivit_train.video_model import clip_table


def measure(work: Callable[[], int]) -> tuple[float, float]:
    """Returns the videos per second of a pass, and the CPU seconds per video, with those of loader processes."""
    gc.collect()
    start_s, before_s = time.perf_counter(), cpu_s()
    videos = work()
    wall_s = time.perf_counter() - start_s
    gc.collect()  # The loader processes end here, and only then their time is known.
    return videos / wall_s, (cpu_s() - before_s) / videos


def cpu_s() -> float:
    """Returns the CPU time of this process and of its children that have ended, in seconds."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


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
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in passes}
    for turn in range(given.rounds + 1):
        for name, work in passes.items():
            measured = measure(work)
            if turn:  # The first round fills the page cache.
                found[name].append(measured)
    rate, cost = (
        {name: statistics.median(row[i] for row in rows) for name, rows in found.items()} for i in (0, 1)
    )
    print(f"{len(clips)} videos on {model.device}, {given.workers} loader processes, {given.rounds} rounds")
    print("videos per second: " + ", ".join(f"{name} {value:.3g}" for name, value in rate.items()))
    ratios = [rows[2][0] / min(rows[0][0], rows[1][0]) for rows in zip(*found.values(), strict=True)]
    print(f"predict / slower of loader and model: median {statistics.median(ratios):.2f} of {sorted(ratios)}")
    print("CPU seconds per video: " + ", ".join(f"{name} {value:.4f}" for name, value in cost.items()))
    print(f"predict / loader + model, in CPU time: {cost['predict'] / (cost['loader'] + cost['model']):.2f}")


if __name__ == "__main__":
    main()
