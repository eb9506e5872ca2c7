"""The table at the end of a multirun. Imported by hydra at start-up: nothing heavy here."""

import csv
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class Summary(Callback):
    """Collects each job's overrides and result; prints them best first and writes summary.csv."""

    def __init__(self) -> None:
        self.jobs: list[tuple[int, str, float | None]] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode.name != "MULTIRUN":
            return
        done = job_return.status == JobStatus.COMPLETED
        self.jobs.append(
            (config.hydra.job.num, " ".join(job_return.overrides or []), job_return.return_value if done else None)
        )

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        jobs = sorted(self.jobs, key=lambda job: -1.0 if job[2] is None else job[2], reverse=True)
        if not jobs:
            return
        width = max(len(overrides) for _, overrides, _ in jobs)
        print(f"\n{'job':>4}  {'overrides':<{width}}  val/score")
        for number, overrides, result in jobs:
            print(f"{number:>4}  {overrides:<{width}}  {'failed' if result is None else f'{result:.4f}'}")
        path = Path(config.hydra.sweep.dir) / "summary.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["job", "overrides", "val/score"])
            writer.writerows(jobs)
        print(f"written: {path}")
