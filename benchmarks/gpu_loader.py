"""Measure training end to end, from the data loader to the step, with train.py on prepared clips."""

import csv
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from vivit_train.data.synthetic import make_demo
from vivit_train.tools.encode import Settings, encode
from vivit_train.utils.process_pool import usable_cores

ROOT = Path(__file__).resolve().parents[1]
TOY = [
    *("model.dim=32", "model.depth=1", "model.heads=2", "model.temporal_depth=1", "data.frames=4"),
    *("data.crop=32", "data.short_side=36", "global_batch_size=4", "trainer=cpu", "data.num_workers=1"),
]


def loader_to_step(work: Path, toy: bool) -> dict[str, Any]:
    """Measure the throughput and the share of time that the model waits for data, after the workers warm up."""
    size, frames, copies, steps = (36, 12, 2, 8) if toy else (256, 64, 50, 40)
    batch = 4 if toy else 32
    videos = prepared(work / f"loader{size}", size, frames, copies)
    words = [
        f"data.root={videos}",
        f"global_batch_size={batch}",
        f"micro_batch_size={batch}",
        *(TOY if toy else []),
    ]
    words += [
        "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1",
        "auto_micro_batch_size=true",
        f"trainer.max_steps={steps}",
    ]
    words += [f"trainer.log_every_n_steps={steps // 4}", f"hydra.run.dir={work / 'loader-run'}"]
    trainer = [] if toy else ["trainer=gpu"]
    recipe = [
        "data=folder",
        "recipe=modern_kinetics",
        "init=none",
        "model=vivit_fe",
        "ema_decay=null",
        "eval.views=1x1",
        "eval.report=false",
    ]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *recipe, *trainer, *words],
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit((done.stderr or done.stdout).strip()[-2000:])
    with (work / "loader-run" / "metrics.csv").open(newline="", encoding="utf-8") as file:
        logged = [row for row in csv.DictReader(file) if row.get("train/clips_per_s")]
    first, last = (elapsed(logged[i], batch) for i in (0, -1))
    clips, seconds, waited = (end - start for start, end in zip(first, last, strict=True))
    return {
        "clips_per_s": clips / seconds,
        "waiting": waited / seconds,
        "mfu": float(logged[-1]["train/mfu_%"]) / 100,
        "peak_gb": float(logged[-1]["train/peak_memory_gb"]),
        "batch": batch,
        "cores": usable_cores(),
    }


def elapsed(row: dict[str, str], batch: int) -> tuple[float, float, float]:
    """Compute the clips, the seconds and the seconds of waiting since the epoch began from the logged rates."""
    clips = batch * (int(row["step"]) + 1)
    seconds = clips / float(row["train/clips_per_s"])
    return clips, seconds, seconds * float(row["train/data_wait_%"]) / 100


def prepared(root: Path, size: int, frames: int, copies: int) -> Path:
    """Create videos as `vivit prepare` writes them, with several links to each so that an epoch is long enough."""
    made, done = root.with_name(f"{root.name}-source"), root.with_name(f"{root.name}-done")
    if done.exists():
        return root
    make_demo(made, size=size, num_frames=frames, train_per_class=4, val_per_class=1, test_per_class=1)
    sources = sorted(made.glob("*/*/*.mp4"))
    targets = [root / path.relative_to(made) for path in sources]
    for folder in {path.parent for path in targets}:
        folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(usable_cores()) as pool:
        jobs = [
            pool.submit(encode, str(source), str(target), Settings(size, 32))
            for source, target in zip(sources, targets, strict=True)
        ]
    for job in jobs:
        job.result()
    for target in targets:
        if target.parts[-3] == "train":
            for copy in range(copies - 1):
                os.link(target, target.with_name(f"{target.stem}-{copy}.mp4"))
    done.touch()
    return root
