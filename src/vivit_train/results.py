"""`train` and `evaluate` of the package, which return results with metrics, rows and paths."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vivit_train import run
from vivit_train.composition import job_of
from vivit_train.utils.errors import UserError
from vivit_train.utils.files import read_records, read_text

NUMBERS = re.compile(r"logit:.*|([^:]*_)?(probability|margin)", re.DOTALL)  # the names of columns with numbers


class Rows(list[dict[str, Any]]):
    """The rows of predictions.csv: a dict per video, with None for what a video that cannot be read lacks."""

    @classmethod
    def read(cls, file: Path) -> "Rows":
        """Reads the rows of a predictions.csv. Names are escaped as in the file."""
        rows = read_records(file)
        return cls({name: value_of(name, text) for name, text in row.items()} for row in rows)

    def to_pandas(self) -> Any:
        """Returns the rows as a pandas DataFrame.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UserError("to_pandas needs pandas: pip install pandas") from error
        return pandas.DataFrame(list(self))


def value_of(column: str, text: str) -> str | float | bool | None:
    """Returns the value of a cell of predictions.csv."""
    if column == "failed":
        return text == "1"
    if NUMBERS.fullmatch(column):
        return float(text) if text else None
    return text


@dataclass(frozen=True, eq=False)
class EvaluationResult(Mapping[str, Any]):
    """The result of an evaluation, a mapping of its metrics: `result["n"]`.

    Attributes:
        folder: The folder of the results.
        metrics: The content of metrics.json.
    """

    folder: Path
    metrics: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.metrics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def __len__(self) -> int:
        return len(self.metrics)

    @property
    def rows(self) -> Rows:
        """The rows of predictions.csv, one per video."""
        return Rows.read(self.folder / "predictions.csv")

    @property
    def paths(self) -> dict[str, Path]:
        """The files of the result by their path below the folder, such as "metrics.json"."""
        files = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path for path in files if not path.name.startswith(".")}


@dataclass(frozen=True, eq=False)
class TrainResult(EvaluationResult):
    """The result of a training run; its metrics and rows are those of the test of the best checkpoint.

    Attributes:
        score: The val/score of the best checkpoint; NaN if there is none.
    """

    score: float

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that the test evaluates: the best one, or the last one of a run without validation."""
        return Path(self.metrics["checkpoint"])


def train(*config: DictConfig | str, run_dir: str | Path | None = None) -> TrainResult:
    """Trains a model and evaluates its best checkpoint, as train.py does.

    A configuration does not tell which of its values the user has set. Of one, train=auto trains the whole model,
    the run is not compared with a recipe, and what has no effect is not refused.

    Args:
        config: A configuration from `compose`, or overrides such as "data=folder" and "data.root=videos".
        run_dir: The folder of the run, if there are overrides.

    Raises:
        UserError: An error that the user can fix.
    """
    with configuration("train", config, run_dir) as cfg:
        score = run.train(cfg)
        return TrainResult(Path(cfg.run_dir), read_metrics(cfg), score)


def evaluate(*config: DictConfig | str, run_dir: str | Path | None = None) -> EvaluationResult:
    """Evaluates a checkpoint, as eval.py does.

    Args:
        config: A configuration from `compose`, or overrides such as "ckpt_path=runs/mine" and "eval.views=4x3".
        run_dir: The folder of the results, if there are overrides.

    Raises:
        UserError: An error that the user can fix.
    """
    with configuration("eval", config, run_dir) as cfg:
        return EvaluationResult(Path(cfg.run_dir), run.evaluate(cfg))


def configuration(
    command: str, config: tuple[DictConfig | str, ...], run_dir: str | Path | None
) -> AbstractContextManager[DictConfig]:
    """Returns a context manager that yields the configuration of a run; overrides are then those of a command.

    Raises:
        UserError: An override is invalid, or the folder of the run is missing.
    """
    words = [word for word in config if isinstance(word, str)]
    if len(config) == 1 and not words and isinstance(config[0], DictConfig):
        if run_dir is not None:
            raise UserError("run_dir is part of the configuration: set it in compose(..., run_dir=...)")
        return nullcontext(config[0])
    if len(words) < len(config):
        raise UserError("pass either one configuration from compose(), or overrides such as 'data=folder'")
    if run_dir is None:
        raise UserError("set run_dir, the folder of the results, such as run_dir='runs/mine'")
    return job_of(words, run_dir, command)


def read_metrics(cfg: DictConfig) -> dict[str, Any]:
    """Returns the content of the metrics.json of a run."""
    metrics: dict[str, Any] = json.loads(read_text(Path(cfg.run_dir, "metrics.json")))
    return metrics
