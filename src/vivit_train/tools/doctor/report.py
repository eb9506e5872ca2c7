"""Write the report as one HTML page: notes, histograms, and a table with frames for each kind of problem."""

import base64
import io
from collections.abc import Mapping, Sequence
from contextlib import closing
from html import escape as escape_html

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

from vivit_train.data.annotations.table import ClipTable, Splits
from vivit_train.tools.doctor.inspect_files import FileReport, strip
from vivit_train.tools.doctor.problems import BAD, KINDS, Problem
from vivit_train.utils.plots import drawn, save
from vivit_train.utils.process_pool import Failure, run_isolated
from vivit_train.utils.text import plural, printable, printable_lines

SHOWN = 8  # The report shows at most this many videos of each kind of problem.


def strips_of(problems: Sequence[Problem], workers: int, timeout_s: float) -> dict[str, NDArray[np.uint8]]:
    """Return film strips of the readable videos that the report shows, as uint8 RGB [H, W, 3] by path."""
    shown = [problem for kind in KINDS for problem in [p for p in problems if p.kind == kind][:SHOWN]]
    paths = dict.fromkeys((path for p in shown for path in (p.path, p.other) if path), timeout_s)
    with closing(run_isolated(strip, paths, workers)) as results:
        return {path: result for path, result in results if not isinstance(result, Failure)}


def report(
    title: str,
    splits: Splits,
    manifests: Mapping[str, ClipTable],
    entries: Mapping[str, FileReport],
    problems: Sequence[Problem],
    strips: Mapping[str, NDArray[np.uint8]],
    notes: Sequence[str],
) -> str:
    """Return the HTML page: notes, histograms, and a table with film strips for each kind of problem."""
    parts = [f"<h1>{escape(title)}: {plural(len(entries), 'file')}</h1>", f"<p>{escape(splits.source)}</p>"]
    parts += [f"<li>{escape(note)}</li>" for note in notes]
    parts.append(f"<h2>Histograms</h2><img src='{_histograms(entries, splits, manifests)}'>")
    for kind, meaning in KINDS.items():
        rows = [problem for problem in problems if problem.kind == kind]
        if rows:
            parts.append(f"<h2>{kind}: {len(rows):,}</h2><p>{escape(meaning)}</p><table>")
            for path, split, _, detail, other in rows[:SHOWN]:
                images = "<br>".join(f"<img src='{_png(strips[p])}'>" for p in (path, other) if p in strips)
                cells = [escape(split), escape(printable(path)), escape(printable(detail)), images]
                parts.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
            more = f"<p>See problems.csv for {len(rows) - SHOWN:,} more.</p>" if len(rows) > SHOWN else ""
            parts.append(f"</table>{more}")
    style = (
        "body{font:15px sans-serif;margin:2em}td{padding:.2em 1em .2em 0;vertical-align:top}img{max-width:100%}"
    )
    return (
        f"<!doctype html><meta charset='utf-8'><title>{escape(title)}</title><style>{style}</style>"
        + "\n".join(parts)
    )


def escape(text: str) -> str:
    """Escape text for the page, so that it contains neither markup nor characters that change the text order."""
    return escape_html(printable_lines(text))


def _histograms(entries: Mapping[str, FileReport], splits: Splits, manifests: Mapping[str, ClipTable]) -> str:
    good = [entry for entry in entries.values() if entry.kind not in BAD]
    figure = Figure(figsize=(12, 9), dpi=80, layout="constrained")
    panels = figure.subplots(3, 3).ravel()
    columns: dict[str, list[float]] = {
        "short side, pixels": [min(entry.width, entry.height) for entry in good],
        "width / height": [entry.width / entry.height for entry in good],
        "frames per second": [entry.fps for entry in good],
        "seconds": [entry.seconds for entry in good],
        "frames": [entry.num_frames for entry in good],
        "GOP size, frames": [entry.gop for entry in good],
        "decode time per clip, ms": [entry.decode_ms for entry in good],
    }
    for axis, (name, values) in zip(panels, columns.items(), strict=False):
        axis.hist(values, bins=40)
        axis.set(title=f"{name}: median {np.median(values):g}" if values else name, ylabel="files")
    for i, (axis, head) in enumerate(zip(panels[len(columns) :], splits.classes, strict=False)):
        for split, manifest in manifests.items():
            axis.plot(np.sort(manifest.class_counts(splits.classes)[i])[::-1], label=split)
        axis.set(title=drawn(f"clips per {head or 'class'}"), xlabel="classes, largest first", ylim=(0, None))
        axis.legend()
    for axis in panels[len(columns) + len(splits.classes) :]:
        axis.set_axis_off()
    buffer = io.BytesIO()
    save(figure, buffer)
    return _data_url(buffer)


def _png(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png")
    return _data_url(buffer)


def _data_url(png: io.BytesIO) -> str:
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
