"""Takes the pictures of docs/tutorial.md of the pages that vivit writes: make pictures.

The commands run on a trained model and its videos, by default those of the demo, and Chromium opens their pages.
"""

import argparse
import base64
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageChops

from vivit_train.utils.page import data_url

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs/pictures"
VIVIT = (sys.executable, "-m", "vivit_train.tools.cli")
WIDTH, HEIGHT = 1000, 3200  # of the window in CSS pixels; what stays empty at the bottom is cut off
SCALE = 1.6  # pixels of the picture per CSS pixel


@dataclass(frozen=True)
class Picture:
    """A picture of some sections of a page.

    Args:
        name: The name of the file in docs/pictures, without its extension.
        page: The page, relative to the folder in which the commands ran.
        sections: The sections that are shown, by their ids; the others are hidden.
        header: Whether the title and the figures above the sections are shown too.
    """

    name: str
    page: str
    sections: tuple[str, ...]
    header: bool = False


SHOWN = (
    Picture("doctor", "doctor/report.html", ("summary", "histograms"), header=True),
    Picture("report", "run/report.html", ("summary", "curves"), header=True),
    Picture("confusion", "run/report.html", ("classes0", "confusion0")),
    Picture("hardest", "run/report.html", ("videos0",)),
    Picture("explain", "explain/index.html", ("video0",)),
)


def run_commands(run: Path, videos: Path, folder: Path, wanted: Sequence[str]) -> None:
    """Runs the commands whose pages the wanted pictures show, in `folder`."""
    shutil.copytree(run, folder / "run")
    (folder / "videos").symlink_to(videos.resolve())
    clips = sorted(file for file in videos.rglob("*") if file.suffix in (".mp4", ".avi"))
    chosen = [clip for clip in clips if "test" in clip.parts] or clips
    clip = str("videos" / chosen[len(chosen) // 2].relative_to(videos))
    for words in (
        ("doctor", "videos", "--out", "doctor"),
        ("explain", "run", clip, "--out", "explain"),
    ):
        if words[0] in wanted:
            subprocess.run([*VIVIT, *words], cwd=folder, check=True)


def still(content: str) -> str:
    """Returns the address of one frame of an animated WebP, given in base64: the motion is under way there."""
    image, buffer = Image.open(io.BytesIO(base64.b64decode(content))), io.BytesIO()
    image.seek(getattr(image, "n_frames", 1) * 5 // 8)
    image.convert("RGB").save(buffer, "WEBP", quality=90)
    return data_url("webp", buffer.getvalue())


def take(picture: Picture, folder: Path) -> Image.Image:
    """Returns a picture of the sections of a page, as Chromium draws them, without the empty part below."""
    page = folder / picture.page
    hidden = "".join(f":not(#{section})" for section in picture.sections)
    rules = f"nav, footer, section{hidden}" + ("" if picture.header else ", header, .tiles")
    copy = page.with_name(f"{picture.name}_shown.html")
    style = f"<style>{rules} {{ display: none !important; }}</style>"
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"/[^\s<]*/(?=runs/|videos\b|small\b|data/)", "", text)  # paths of this machine
    text = re.sub(r"data:image/webp;base64,([\w+/=]+)", lambda found: still(found[1]), text)
    copy.write_text(text.replace("</head>", f"{style}</head>", 1), encoding="utf-8")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    shot = folder / "shot.png"
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--hide-scrollbars", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000"]
    command += [f"--force-device-scale-factor={SCALE}", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}"]
    subprocess.run([*command, copy.as_uri()], check=True, capture_output=True, timeout=300)
    image = Image.open(shot).convert("RGB")
    empty = Image.new("RGB", image.size, image.getpixel((2, image.height - 2)))
    box = ImageChops.difference(image, empty).getbbox() or (0, 0, *image.size)
    margin = round(16 * SCALE)
    return image.crop((0, max(0, box[1] - margin), image.width, min(image.height, box[3] + margin)))


def contact_sheet(run: Path, rows: int) -> Image.Image:
    """Returns the first rows of contact_sheet.png in the width of the other pictures."""
    image = Image.open(run / "contact_sheet.png").convert("RGB")
    width = round(WIDTH * SCALE)
    image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    return image.crop((0, 0, width, min(image.height, rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="Folder of a run with its report.")
    parser.add_argument("videos", type=Path, help="Folder of the videos that it was trained on.")
    parser.add_argument("--only", help="Names of pictures, such as report,confusion. Default: all.")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",") if arguments.only else ["contact_sheet", *(shown.name for shown in SHOWN)]
    PICTURES.mkdir(exist_ok=True)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run_commands(arguments.run, arguments.videos, folder, wanted)
        images = {shown.name: take(shown, folder) for shown in SHOWN if shown.name in wanted}
        if "contact_sheet" in wanted:
            images["contact_sheet"] = contact_sheet(arguments.run, rows=900)
    for name, image in images.items():
        image.save(PICTURES / f"{name}.webp", quality=82, method=6)
        sys.stdout.write(f"written: {PICTURES / f'{name}.webp'}\n")


if __name__ == "__main__":
    main()
