"""A page with a video and the track of its segments: one file, without any request to a network."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from vivit_train.segments import Segment, Segmentation
from vivit_train.utils.text import percent, plural, printable

# Neighbors on the color wheel are far apart in the order of the classes (the golden angle).
HUE_STEP = 137.508
STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf8; --ink: #1d1c1a; --soft: #6c6862; --line: #e2ded7;
  --card: #ffffff; --tint: 60%; --tone: 88%; --edge: 46%; --text: 22%; }
@media (prefers-color-scheme: dark) { :root { --paper: #161514; --ink: #ece9e4; --soft: #9c978f;
  --line: #34312d; --card: #1f1d1b; --tint: 40%; --tone: 26%; --edge: 58%; --text: 90%; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.5rem; line-height: 1.25; letter-spacing: -0.01em; margin: 0 0 0.25rem; overflow-wrap: anywhere; }
.about { color: var(--soft); margin: 0 0 1.5rem; }
video { display: block; width: 100%; max-height: 68vh; background: #000; border-radius: 10px; }
.unplayable { border-left: 3px solid var(--soft); padding-left: 0.75rem; color: var(--soft); }
.track { margin: 1.25rem 0 0; }
.track h2 { font-size: 0.8rem; font-weight: 600; color: var(--soft); margin: 0 0 0.35rem; }
.bar { position: relative; height: 3rem; border-radius: 8px; background: var(--card); overflow: hidden;
  box-shadow: inset 0 0 0 1px var(--line); }
.bar button { position: absolute; top: 0; bottom: 0; border: 0; padding: 0; text-indent: 0.6rem; text-align: left;
  cursor: pointer; font: inherit; font-size: 0.85rem;
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis;
  color: hsl(var(--hue) 45% var(--text)); background: hsl(var(--hue) var(--tint) var(--tone));
  box-shadow: inset 3px 0 hsl(var(--hue) 60% var(--edge)); }
.bar button:hover, .bar button:focus-visible { filter: brightness(1.08); outline: 2px solid var(--ink);
  outline-offset: -2px; }
.head { position: absolute; top: 0; bottom: 0; width: 2px; background: var(--ink); pointer-events: none; left: 0; }
.scale { display: flex; justify-content: space-between; color: var(--soft); font-size: 0.8rem; margin-top: 0.3rem;
  font-variant-numeric: tabular-nums; }
table { width: 100%; border-collapse: collapse; margin-top: 2rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-size: 0.8rem; font-weight: 600; color: var(--soft); }
th, td { padding: 0.5rem 0.75rem 0.5rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td:last-child, th:last-child { text-align: right; padding-right: 0; }
tbody tr { cursor: pointer; }
tr.now td { background: var(--card); font-weight: 600; }
.dot { display: inline-block; width: 0.65rem; height: 0.65rem; border-radius: 50%; margin-right: 0.5rem;
  background: hsl(var(--hue) 60% var(--edge)); }
.name { overflow-wrap: anywhere; }
@media (max-width: 34rem) { main { padding-top: 1.5rem; } .bar { height: 2.5rem; } }
"""
SCRIPT = """
const video = document.querySelector("video");
const parts = [...document.querySelectorAll("[data-start]")];
const seconds = Number(document.body.dataset.seconds);
for (const part of parts) part.addEventListener("click", () => {
  if (video) { video.currentTime = Number(part.dataset.start); video.play().catch(() => {}); }
});
function follow() {
  const now = video.currentTime;
  for (const head of document.querySelectorAll(".head")) head.style.left = `${100 * Math.min(now / seconds, 1)}%`;
  for (const part of parts)
    part.classList.toggle("now", part.dataset.start <= now && now < part.dataset.end);
}
function warn() { document.querySelector(".unplayable").hidden = false; }
if (video) { video.addEventListener("error", warn); if (video.error) warn(); }
if (video) { video.addEventListener("timeupdate", follow); video.addEventListener("seeked", follow); }
"""
UNPLAYABLE = (
    '<p class="unplayable" hidden>This browser cannot play the video: it has moved, or has a format that browsers '
    "do not know, such as AVI. <code>vivit prepare</code> makes copies that they play.</p>"
)
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; media-src * file: data:"


def text(value: object) -> str:
    """Return text for HTML, with invisible characters escaped."""
    return escape(printable(value))


def page(result: Segmentation, video: str | None) -> str:
    """Return the page of a video.

    Args:
        result: The segments of the video.
        video: The address of the video, relative to the page; None for a live stream, which is not kept.
    """
    name = text(result.video if video is None else Path(result.video).name)
    heads = list(dict.fromkeys(one.head for one in result.segments))
    names = list(dict.fromkeys((one.head, one.name) for one in result.segments))
    hues = {key: round(number * HUE_STEP % 360) for number, key in enumerate(names)}
    tracks = [track(result, head, hues) for head in heads]
    player = f'<video controls preload="metadata" src="{escape(video)}"></video>\n{UNPLAYABLE}' if video else ""
    about = (
        f"{seconds(result.duration_s)}, {plural(len(result.segments), 'segment')}; windows of "
        f"{result.window_s:.2f} s every {result.step_s:.2f} s"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{name}</title>\n<style>{STYLE}</style>\n</head>\n"
        f'<body data-seconds="{result.duration_s:.3f}">\n<main>\n<h1>{name}</h1>\n<p class="about">{about}</p>\n'
        f"{player}\n{''.join(tracks)}\n{table(result.segments, hues)}\n</main>\n<script>{SCRIPT}</script>\n"
        "</body>\n</html>\n"
    )


def track(result: Segmentation, head: str, hues: dict[tuple[str, str], int]) -> str:
    """Return the track of a head: its segments as buttons along the time, and the scale below it."""
    total_s = max(result.duration_s, 1e-9)
    buttons = []
    for one in result.segments:
        if one.head == head:
            left, width = (100 * time_s / total_s for time_s in (one.start_s, one.end_s - one.start_s))
            place = f"left: {left:.3f}%; width: {width:.3f}%"
            share = text(percent(one.probability))
            title = f"{text(one.name)}, {seconds(one.start_s)} to {seconds(one.end_s)}, {share}"
            style = f"--hue: {hues[one.head, one.name]}; {place}"
            buttons.append(f'<button {times(one)} style="{style}" title="{title}">{text(one.name)}</button>')
    marks = "".join(f"<span>{seconds(result.duration_s * k / 4)}</span>" for k in range(5))
    title = f"<h2>{text(head)}</h2>" if head else ""
    return (
        f'<section class="track">{title}<div class="bar">{"".join(buttons)}<div class="head"></div></div>'
        f'<div class="scale">{marks}</div></section>'
    )


def table(segments: Sequence[Segment], hues: dict[tuple[str, str], int]) -> str:
    """Return a table of the segments."""
    has_heads = any(one.head for one in segments)
    rows = []
    for one in segments:
        cells = [seconds(one.start_s), seconds(one.end_s), *([text(one.head)] if has_heads else [])]
        dot = f'<span class="dot" style="--hue: {hues[one.head, one.name]}"></span>'
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        row += f'<td class="name">{dot}{text(one.name)}</td><td>{text(percent(one.probability))}</td>'
        rows.append(f"<tr {times(one)}>{row}</tr>")
    columns = ["start", "end", *(["head"] if has_heads else []), "class", "probability"]
    header = "".join(f"<th>{column}</th>" for column in columns)
    return f"<table><thead><tr>{header}</tr></thead><tbody>\n{chr(10).join(rows)}\n</tbody></table>"


def times(segment: Segment) -> str:
    """Return the attributes by which the script finds the segment of a time."""
    return f'data-start="{segment.start_s:.3f}" data-end="{segment.end_s:.3f}"'


def seconds(time_s: float) -> str:
    """Return a time as m:ss.s, or h:mm:ss from an hour on."""
    tenths = round(time_s * 10)
    minutes, rest = divmod(tenths, 600)
    if minutes < 60:
        return f"{minutes}:{rest // 10:02}.{rest % 10}"
    return f"{minutes // 60}:{minutes % 60:02}:{rest // 10:02}"
