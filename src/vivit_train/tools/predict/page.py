"""A page with a video and the track of its segments: one file, without any request to a network."""

from pathlib import Path
from typing import Any

from vivit_train.segments import Segment, Segmentation
from vivit_train.utils.page import render
from vivit_train.utils.text import percent, plural, printable

# Neighbors on the color wheel are far apart in the order of the classes (the golden angle).
HUE_STEP = 137.508


def page(result: Segmentation, video: str | None) -> str:
    """Return the page of a video.

    Args:
        result: The segments of the video.
        video: The address of the video, relative to the page; None for a live stream, which is not kept.
    """
    heads = list(dict.fromkeys(one.head for one in result.segments))
    names = list(dict.fromkeys((one.head, one.name) for one in result.segments))
    hues = {key: round(number * HUE_STEP % 360) for number, key in enumerate(names)}
    total_s = max(result.duration_s, 1e-9)
    tracks = [
        {"head": head, "parts": [shown(one, hues, total_s) for one in result.segments if one.head == head]}
        for head in heads
    ]
    return render(
        "timeline.html",
        printable(result.video if video is None else Path(result.video).name),
        subtitle=(
            f"{seconds(result.duration_s)}, {plural(len(result.segments), 'segment')}; windows of "
            f"{result.window_s:.2f} s every {result.step_s:.2f} s"
        ),
        video=video,
        duration_s=result.duration_s,
        tracks=tracks,
        has_heads=any(heads),
        marks=[seconds(result.duration_s * k / 4) for k in range(5)],
    )


def shown(one: Segment, hues: dict[tuple[str, str], int], total_s: float) -> dict[str, Any]:
    """Return what the page shows of a segment; its place is in percent of the duration."""
    return {
        "name": one.name,
        "share": percent(one.probability),
        "hue": hues[one.head, one.name],
        "start_s": one.start_s,
        "end_s": one.end_s,
        "start": seconds(one.start_s),
        "end": seconds(one.end_s),
        "left": 100 * one.start_s / total_s,
        "width": 100 * (one.end_s - one.start_s) / total_s,
    }


def seconds(time_s: float) -> str:
    """Return a time as m:ss.s, or h:mm:ss from an hour on."""
    tenths = round(time_s * 10)
    minutes, rest = divmod(tenths, 600)
    if minutes < 60:
        return f"{minutes}:{rest // 10:02}.{rest % 10}"
    return f"{minutes // 60}:{minutes % 60:02}:{rest // 10:02}"
