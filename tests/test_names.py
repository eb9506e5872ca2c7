"""Hostile names of classes, files and videos: in terminals, tables, pages, pictures, lists and folders."""

import csv
import logging
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers import ROOT, TINY, Happened
from matplotlib.image import imread
from omegaconf import DictConfig

from vivit_train.data.annotations.csv_file import read_csv
from vivit_train.data.annotations.folder import read_folder
from vivit_train.data.annotations.kinetics import read_kinetics
from vivit_train.data.synthetic import make_demo
from vivit_train.run import train
from vivit_train.tools.doctor.inspect_files import FileReport
from vivit_train.tools.doctor.problems import Problem
from vivit_train.tools.doctor.report import report
from vivit_train.tools.doctor.run import write_clean
from vivit_train.tools.encode import Settings
from vivit_train.tools.prepare import prepare
from vivit_train.utils.errors import UserError, VideoError
from vivit_train.utils.plots import confusion, contact_sheet
from vivit_train.utils.text import csv_cell, file_stem, printable

HOSTILE = (
    "\x1b[31mred\x1b[0m",
    "\u202eterces",
    "two\nlines",
    "$x^{$",
    '=cmd("x")',
    "<script>alert(1)</script>",
    "[red]x[/red] [/]",
    "x" * 120 + "' onload='x()",
)
# controls but for line breaks, C1, bidi, separators of lines, the byte order mark, halves of characters
RAW = re.compile("[\x00-\x09\x0b-\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
LATIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x9b\x7f", r"\x1b[2J\x9b\x7f"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\u202ea\u2066\u061c\u200e\u2028", r"\u202ea\u2066\u061c\u200e\u2028"),
        ("\udce9\ufeff", r"\udce9\ufeff"),
        ("größer 走る كرة", "größer 走る كرة"),
        ("\U0001f468\u200d\U0001f469 \u0646\u200c\u0645", "\U0001f468\u200d\U0001f469 \u0646\u200c\u0645"),
    ],
)
def test_what_a_terminal_obeys_or_hides_is_escaped_and_letters_stay(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "  =1", "\uff1d1", "\u00a0@x"])
def test_a_cell_that_a_spreadsheet_would_compute_begins_with_an_apostrophe(text: str) -> None:
    assert csv_cell(text) == "'" + printable(text)
    assert csv_cell("a=1") == "a=1"


def test_messages_keep_their_own_lines_and_escape_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("vivit_train").info("one\ntwo \x1b[31m")
    assert capsys.readouterr().out == "one\ntwo \\x1b[31m\n"
    assert str(UserError("one\ntwo \u202e")) == "one\ntwo \\u202e"
    assert str(VideoError("a\n\x1b.mp4", "bad \x1b")) == r"cannot read video a\n\x1b.mp4: bad \x1b"


@pytest.mark.fault("Strangers' files")
@pytest.mark.parametrize("name", ["../x", "/abs", "a/b", "CON", "nul.txt", "a\0b", "", "..", "ü" * 240, *HOSTILE])
def test_a_name_in_a_file_s_name_stays_in_its_folder(name: str, tmp_path: Path, happened: Happened) -> None:
    stem = file_stem(name)
    (tmp_path / f"confusion_{stem}.png").touch()
    assert [path.parent for path in tmp_path.rglob("*.png")] == [tmp_path]
    assert stem != name
    assert file_stem("verb") == "verb"
    assert file_stem("a/b") != file_stem("a_b")
    happened(
        f"A head or data set called {printable(name)[:40]!r}, and the name of its plot", f"confusion_{stem}.png"
    )


@pytest.mark.fault("Strangers' files")
def test_pictures_draw_hostile_names_without_warnings(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, happened: Happened
) -> None:
    import numpy as np
    import torch

    names = [*HOSTILE, "走る\U0001f468", "$" * 1001, "\ud800"]
    ids = np.arange(len(names))
    confusion(tmp_path / "confusion.png", ids, ids, names, "a $x^{$ b")
    times = torch.zeros(len(names), 2)
    contact_sheet(tmp_path / "sheet.png", torch.zeros(len(names), 2, 3, 8, 8), names, times.long(), times)
    assert all(imread(file).std() > 0.01 for file in tmp_path.glob("*.png"))
    assert [str(warning.message) for warning in recwarn if "atplotlib" in str(warning.filename)] == []
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    happened("Classes called $x^{$, ESC[31m and a half of a character, in plots", "they are drawn as text")


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))


@pytest.mark.fault("Strangers' files")
def test_the_doctor_s_page_has_no_element_that_a_name_made(tmp_path: Path, happened: Happened) -> None:
    names = [*HOSTILE, "</title><script>x</script>", "' onerror='x()", 'javascript:x()"><img src=x onerror=x()>']
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "0.mp4").touch()
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "0.mp4").touch()
    splits = read_folder(tmp_path)
    problems = [Problem(f"/x/{name}.mp4", "train", "damaged", name, name) for name in names]
    look = FileReport("a", width=4, height=4, num_frames=3, fps=1, seconds=3)
    page = report(names[-2], splits, {"train": splits.train}, {"a": look}, problems, {}, names, names[-1])
    seen, plain = Page(), Page()
    seen.feed(page)
    harmless = [Problem(f"/x/{i}.mp4", "train", "damaged", "x", "x") for i in range(len(names))]
    plain.feed(report("x", splits, {"train": splits.train}, {"a": look}, harmless, {}, ["x"] * len(names), "x"))
    assert [tag for tag, _ in seen.tags if tag != "wbr"] == [tag for tag, _ in plain.tags if tag != "wbr"]
    assert not {tag for tag, _ in seen.tags} & {"script", "img", "iframe"}
    attributes = [pair for _, attrs in seen.tags for pair in attrs]
    assert not [name for name, _ in attributes if name.startswith("on") or name == "src"]
    links = [str(value) for name, value in attributes if name == "href"]
    assert all(link.startswith(("#", "file:///x/")) for link in links)
    assert not RAW.search(page)
    happened("names with HTML in them: the doctor's page", "they are text there: no element, attribute or address")


def some_name(draw: random.Random) -> str:
    """Of a file or folder, that a list can hold: what its forms give a meaning, blanks at the ends, any script."""
    special = [
        '"',
        "'",
        ",",
        ";",
        "=",
        "#",
        " ",
        "\t",
        "\ufeff",
        "\u2028",
        "\x1c",
        "\x85",
        "\x0b",
        "é",
        "走",
        "\\",
        "1",
    ]
    return "".join(draw.choice([*special, "a", ".mp4", "id,name"]) for _ in range(draw.randint(1, 6)))


@pytest.mark.fault("Strangers' files")
def test_clean_lists_give_every_name_back_as_it_was(tmp_path: Path, happened: Happened) -> None:
    draw = random.Random(0)
    for trial in range(60):
        root, out = tmp_path / str(trial), tmp_path / f"{trial}_clean"
        classes = {f"{some_name(draw)}"[:60] for _ in range(6)} - {".", ".."}
        if len(classes) < 2:
            continue
        for split in ("train", "val"):
            for name in classes:
                folder = root / split / name.lstrip(".")
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"x{some_name(draw)}.mp4").touch()
        splits = read_folder(root)
        manifests = {"train": splits.train, "val": splits.val}
        assert write_clean(out, splits, manifests, {"train": set(), "val": set()}, "folder")
        again = read_csv(out, train="train.csv", val="val.csv")
        assert again.classes == splits.classes
        for before, after in ((splits.train, again.train), (splits.val, again.val)):
            assert before.paths.tolist() == after.paths.tolist()
            assert before.labels.tolist() == after.labels.tolist()
    happened(
        "60 data sets with quotes, separators and blanks in names: the doctor's clean lists", "read as they were"
    )


@pytest.mark.slow
@pytest.mark.fault("Strangers' files")
def test_a_class_that_no_list_can_hold_is_named_not_changed(
    config: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str], happened: Happened
) -> None:
    from vivit_train.tools.doctor.run import examine

    root = tmp_path / "data"
    make_demo(root, size=36, num_frames=8, train_per_class=1, val_per_class=1, test_per_class=1)
    for split in ("train", "val", "test"):
        first = min((root / split).iterdir())
        first.rename(first.with_name("two\nlines"))
    examine(config("data=folder", f"data.root={root}", *TINY), tmp_path / "out", 1)
    output = capsys.readouterr().out
    assert r"rename two\nlines" in output
    assert not (tmp_path / "out" / "clean").exists()
    happened("a class with a line break in its name: `vivit doctor`", "no clean lists, and the class to rename")


@pytest.mark.fault("Strangers' files")
def test_prepare_refuses_a_listed_video_outside_its_folder(tmp_path: Path, happened: Happened) -> None:
    source, target = tmp_path / "in" / "src", tmp_path / "out" / "dst"
    source.mkdir(parents=True)
    (source / "a.mp4").touch()
    (tmp_path / "x.mp4").touch()
    listed = tmp_path / "list.txt"
    for row in ("../../x.mp4", "/etc/x.mp4", "a/../../../x.mp4", "a\0.mp4"):
        listed.write_text(f"{row}\n")
        with pytest.raises(UserError, match=r"lists paths that are not files below") as found:
            prepare(source, target, Settings(), workers=1, listed=listed)
        assert "x.mp4" in str(found.value) or r"\x00" in str(found.value)
    assert not target.exists()
    happened("../../x.mp4 in the list of `vivit prepare`", found.value)


def test_messages_about_annotations_show_hostile_names_in_one_line(tmp_path: Path) -> None:
    columns = "label,youtube_id,time_start,time_end"
    (tmp_path / "train.csv").write_text(f"{columns}\n\x1b[31mred,\u202eid,1,2\n", encoding="utf-8")
    (tmp_path / "val.csv").write_text(f"{columns}\n\x1b[31mred,\u202eid,1,2\n", encoding="utf-8")
    with pytest.raises(UserError) as found:
        read_kinetics(tmp_path)
    assert not RAW.search(str(found.value))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's eight classes under hostile names."""
    root = tmp_path_factory.mktemp("hostile") / "data"
    make_demo(root, size=36, num_frames=12, train_per_class=1, val_per_class=1, test_per_class=1)
    for split in ("train", "val", "test"):
        for folder, name in zip(sorted((root / split).iterdir()), HOSTILE, strict=True):
            safe = name.replace("/", "\u2215")  # which no folder's name can have
            folder.rename(folder.with_name(safe))
            video = next((root / split / safe).glob("*.mp4"))
            video.rename(video.with_name(f"{safe}.mp4"))
    return root


@pytest.mark.fault("Strangers' files")
def test_a_run_with_hostile_names_ends_as_any_other(
    hostile: Path,
    config: Callable[..., DictConfig],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    happened: Happened,
) -> None:
    bad = hostile / "train" / "two\nlines" / "\x1b[2J.mp4"
    bad.write_text("no video")
    cfg = config("data=folder", f"data.root={hostile}", "data.max_bad_fraction=0.5", pictures=True)
    train(cfg)
    bad.unlink()
    output, run = "".join(capfd.readouterr()), tmp_path / "run"
    assert not RAW.search(output)
    assert r"two\nlines" in output
    for name in ("predictions.csv", "bad_videos.csv", "metrics.csv", "recipe_differences.txt", "metrics.json"):
        assert not RAW.search((run / name).read_text(encoding="utf-8")), name
    rows = list(csv.DictReader((run / "predictions.csv").open(newline="", encoding="utf-8")))
    assert {row["label"] for row in rows} >= {'\'=cmd("x")', r"two\nlines", "$x^{$"}
    assert len([float(value) for name, value in rows[0].items() if name.startswith("logit:")]) == 8
    assert (run / "confusion.png").stat().st_size > 1000 < (run / "contact_sheet.png").stat().st_size
    happened(
        "classes and files called ESC[31m, U+202E, line break, $x^{$, =cmd(), <script>",
        "the run ends as any other",
    )


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, timeout=300, env=os.environ | LATIN | environment
    )


@pytest.mark.slow
@pytest.mark.fault("Strangers' files")
def test_an_ascii_locale_trains_scores_examines_and_prepares_utf_8_names(
    videos: Path, tmp_path: Path, happened: Happened
) -> None:
    for split in ("train", "val"):
        for number, folder in enumerate(sorted((videos / split).iterdir())[:2]):
            place = tmp_path / "vidéos" / split / f"走る{number}"
            place.mkdir(parents=True)
            (place / "größer.mp4").symlink_to(next(folder.glob("*.mp4")))
    overrides = ["data=folder", "data.root='vidéos'"]  # in quotes for Hydra, whose bare words are ASCII
    commands = [
        [str(ROOT / "train.py"), *overrides, *TINY, "hydra.run.dir='läuft'"],
        [str(ROOT / "eval.py"), "ckpt_path='läuft/checkpoints/best.ckpt'", "hydra.run.dir='läuft/eval'"],
        ["-m", "vivit_train.tools.cli", "doctor", *overrides, "--workers", "1"],
        ["-m", "vivit_train.tools.cli", "prepare", "vidéos", "fertig", "--workers", "1"],
    ]
    for command in commands:
        result = run(*command, cwd=tmp_path, PYTHONIOENCODING="ascii")
        assert result.returncode == 0, (result.stdout + result.stderr).decode(errors="replace")
        assert b"Traceback" not in result.stderr
    table = (tmp_path / "läuft/predictions.csv").read_text(encoding="utf-8")
    assert "走る0/größer.mp4" in table
    assert (tmp_path / "fertig/train/走る0/größer.mp4").is_file()
    happened("LC_ALL=C PYTHONUTF8=0 with names in UTF-8", "train.py, eval.py and vivit read and write them")


def test_a_script_starts_anew_once_where_names_are_not_utf_8(tmp_path: Path) -> None:
    script = tmp_path / "é.py"
    script.write_text(
        "import sys\nfrom vivit_train.utils.startup import prepare_process\n"
        "print('started', flush=True)\nprepare_process()\n"
        "print(sys.getfilesystemencoding(), ascii(sys.argv[1]), '\\u8d70', flush=True)\n",
        encoding="utf-8",
    )
    result = run(str(script), "ü", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert result.stdout.split() == [b"started", b"started", b"utf-8", rb"'\xfc'", rb"\u8d70"], result.stderr


def test_prepare_knows_videos_of_hostile_names_again(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = tmp_path / "src", tmp_path / "dst"
    source.mkdir()
    film = next(videos.rglob("*.mp4"))
    for name in ("=cmd()", 'a "b", c', " two\nlines\r ", "\x1b[31m", "\u2028"):
        (source / f"{name}.mp4").symlink_to(film)
    (source / "\x1b[2J.mp4").write_text("no video")
    for _ in range(2):
        prepare(source, target, Settings(), workers=2)
    assert f"6 videos: 5 done, 1 to re-encode, {Settings()}" in caplog.messages
    assert sorted(path.name for path in target.glob("*.mp4")) == sorted(
        path.name for path in source.iterdir() if path.is_symlink()
    )
    assert not RAW.search((target / "failed.csv").read_text(encoding="utf-8"))
