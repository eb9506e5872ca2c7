"""Shows predictions on the terminal and writes them to JSON and CSV files."""

import csv
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import typer

from vivit_train.predictions import ACTION, Prediction
from vivit_train.utils.errors import IN_THE_WAY, UserError
from vivit_train.utils.files import replacing
from vivit_train.utils.run_folder import best_checkpoint
from vivit_train.utils.text import csv_cell, percent, plural, printable


def check_free(files: Sequence[Path], overwrite: bool) -> None:
    """Check before any work that the output files can be written.

    Raises:
        UserError: A file exists, or two outputs or a folder have the same path.
    """
    problems = [f"{file} exists" for file in files if os.path.lexists(file) and not overwrite]
    problems += [f"{file} is a folder" for file in files if file.is_dir()]
    above = [next(folder for folder in file.absolute().parents if folder.exists()) for file in files]
    if in_the_way := next((folder for folder in above if not folder.is_dir()), None):
        raise UserError(f"{in_the_way}: {IN_THE_WAY}")
    if problems:
        raise UserError(f"{'; '.join(problems)}: choose another file, or add --overwrite to replace it")
    if len({os.path.abspath(file) for file in files}) < len(files):
        raise UserError("two outputs have the same path: choose two files")


def check_inputs(outputs: Mapping[str, Path | None], inputs: Iterable[str | Path | None]) -> None:
    """Check that no output is a file that the command reads, which --overwrite would replace.

    Raises:
        UserError: An option names such a file.
    """
    names = [name for name in inputs if name is not None]
    read = {os.path.realpath(best_checkpoint(Path(name)) or name) for name in names}
    for option, file in outputs.items():
        if file is not None and os.path.realpath(file) in read:
            raise UserError(f"{option} {file}: the command reads this file: choose another one")


def clip_name(prediction: Prediction) -> str:
    """Return the path of the video, with the times of a clip within it."""
    span_s = "" if prediction.span_s is None else "@{:.2f}-{:.2f}".format(*prediction.span_s)
    return printable(prediction.video) + span_s


def print_line(prediction: Prediction) -> None:
    """Print one line per head for other programs, with tabs: the video, the head if named, and the classes."""
    for head, labels in prediction.heads.items():
        cells = [f"{printable(label.name)}\t{label.probability:.4f}" for label in labels]
        typer.echo("\t".join([clip_name(prediction), *([printable(head)] if head else []), *cells]))


def print_table(predictions: Sequence[Prediction]) -> None:
    """Print a table of predictions to a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    has_heads = any(len(prediction.heads) > 1 for prediction in predictions)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("video", overflow="fold")
    if has_heads:
        table.add_column("head")
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right")
    for prediction in predictions:
        name = clip_name(prediction)
        for head, labels in prediction.heads.items():
            for rank, label in enumerate(labels):
                style = "" if rank else "bold"
                cells = [Text(name), *([Text(printable(head) if not rank else "")] if has_heads else [])]
                cells += [Text(printable(label.name), style), Text(percent(label.probability, 1), style)]
                table.add_row(*cells)
                name = ""
        table.add_section()
    Console().print(table)


def write_json(file: Path, predictions: Sequence[Prediction], about: Mapping[str, str]) -> None:
    """Write the predictions and the videos that failed; `about` states the checkpoint and the views."""
    content = {
        **about,
        "predictions": [prediction.to_dict() for prediction in predictions if not prediction.failed],
        "failed": [prediction.to_dict() for prediction in predictions if prediction.failed],
    }
    with opened(file) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_csv(file: Path, predictions: Sequence[Prediction], heads: Sequence[str]) -> None:
    """Write one row per video: the most probable classes of each head, and why a video failed."""
    has_spans = any(prediction.span_s for prediction in predictions)
    header = ["video", *(["start_s", "end_s"] if has_spans else [])]
    names = [*heads, *([ACTION] if len(heads) > 1 else [])]
    top = max((len(labels) for prediction in predictions for labels in prediction.heads.values()), default=1)
    for name in names:
        for rank in range(1, top + 1):
            column = f"{name or 'class'}{'' if rank == 1 else f'_{rank}'}"
            header += [column, f"{column}_probability" if name or rank > 1 else "probability"]
    with opened(file) as part, part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
        writer = csv.writer(stream)
        writer.writerow([*map(csv_cell, header), "error"])
        for prediction in predictions:
            cells = [csv_cell(prediction.video)]
            if has_spans:
                cells += [f"{time_s:g}" for time_s in prediction.span_s] if prediction.span_s else ["", ""]
            for name in names:
                labels = prediction.heads.get(name, ())
                for rank in range(top):
                    label = labels[rank] if rank < len(labels) else None
                    cells += [csv_cell(label.name), f"{label.probability:.6g}"] if label else ["", ""]
            writer.writerow([*cells, csv_cell(prediction.error)])


def opened(file: Path):  # type: ignore[no-untyped-def]
    """Return the context of a file that replaces another one when it is complete; its folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return replacing(file)


def report_failures(failed: Sequence[Prediction], total: int) -> None:
    """List on stderr the videos that could not be read, with the reasons."""
    lines = [f"{len(failed):,} of {plural(total, 'video')} could not be read:"]
    lines += [f"  {clip_name(prediction)}: {printable(prediction.error)}" for prediction in failed]
    sys.stdout.flush()
    typer.echo("\n".join(lines), err=True)
