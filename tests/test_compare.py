"""`vivit compare`: pairs of results on the same videos, and what it refuses to compare."""

import csv
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vivit_train.tools.cli import app
from vivit_train.tools.compare import compare, mcnemar
from vivit_train.utils.errors import UserError

pytest.importorskip("plotly")
PROTOCOL = {"split": "test", "views": "1x1", "order": "forward"}


def result(
    folder: Path, rows: Sequence[tuple[str, str, str]], failed: Sequence[str] = (), **protocol: object
) -> Path:
    """A folder with the files of a result, from (id, label, prediction) of each video."""
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({**PROTOCOL, "n": len(rows), **protocol}))
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", "prediction", "failed", "logit:a", "logit:prediction"])
        writer.writerows([*row, int(row[0] in failed), "0", "0"] for row in rows)
    return folder


def videos(right: str) -> list[tuple[str, str, str]]:
    """One video per letter: "+" is right, "-" is wrong. The first half is of class a."""
    labels = ["a" if i < len(right) / 2 else "<b>" for i in range(len(right))]
    other = {"a": "<b>", "<b>": "a"}
    return [
        (f"{i:02}.mp4", k, k if r == "+" else other[k]) for i, (k, r) in enumerate(zip(labels, right, strict=True))
    ]


@pytest.mark.parametrize(
    ("gained", "lost", "p"), [(0, 0, 1), (5, 5, 1), (9, 1, 22 / 1024), (0, 3, 0.25), (600, 500, 0.00278)]
)
def test_mcnemar_s_test_is_exact(gained: int, lost: int, p: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p, rel=2e-2)
    assert mcnemar(gained, lost) == mcnemar(lost, gained)
    n = gained + lost
    exact = 2 * sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n if n else 1
    assert mcnemar(gained, lost) == pytest.approx(min(1, exact))


def test_a_comparison_names_what_flipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = result(tmp_path / "first", videos("++++----" * 5))
    rows = videos("+++-++++" * 5)
    second = result(tmp_path / "second", rows[::-1], failed=["00.mp4"])  # in another order
    (found,) = compare([first, second], tmp_path / "page.html")
    assert found.difference == pytest.approx((5 * 7 - 1 - 5 * 4) / 40)
    assert found.low < found.difference < found.high
    assert (len(found.gained), len(found.lost)) == (20, 6)
    assert found.p == pytest.approx(mcnemar(20, 6))
    assert {row["class"]: row["gained"] - row["lost"] for row in found.by_class()} == {
        name: sum(
            (s[2] == s[1] and s[0] != "00.mp4") - (f[2] == f[1])
            for f, s in zip(videos("++++----" * 5), rows, strict=True)
            if f[1] == name
        )
        for name in ("a", "<b>")
    }
    said = capsys.readouterr().out
    assert "+35.0 points (95 % CI " in said
    assert "20 gained, 6 lost" in said
    assert "the second is better" in said
    page = (tmp_path / "page.html").read_text()
    assert "<b>" not in re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    assert "00.mp4" in page
    assert "unreadable" in page


def test_other_protocols_videos_and_labels_are_refused_together(tmp_path: Path) -> None:
    first = result(tmp_path / "first", videos("+-+-"))
    views = result(tmp_path / "views", videos("+-+-"), views="4x3", order="reversed")
    other = result(tmp_path / "other", [*videos("+-+-")[:3], ("x.mp4", "a", "a")])
    labels = result(tmp_path / "labels", [("00.mp4", "<b>", "a"), *videos("+-+-")[1:]])
    with pytest.raises(UserError) as refused:
        compare([first, views, other, labels], tmp_path / "page.html")
    for words in ("views is 1x1 and 4x3", "order is forward and reversed", "x.mp4", "different labels: 00.mp4"):
        assert words in str(refused.value)
    assert not (tmp_path / "page.html").exists()


def test_damaged_results_and_foreign_files_are_named(tmp_path: Path) -> None:
    good = result(tmp_path / "good", videos("+-+-"))
    old = result(tmp_path / "old", videos("+-+-"), views=None)
    short = result(tmp_path / "short", videos("+-+"), n=4)
    twice = result(tmp_path / "twice", [*videos("+-"), *videos("+-")])
    ragged = result(tmp_path / "ragged", videos("+-+-"))
    table = (ragged / "predictions.csv").read_text().splitlines()
    (ragged / "predictions.csv").write_text("\n".join([table[0], f"{table[1]},1", *table[2:]]))
    bare = result(tmp_path / "bare", videos("+-+-"))
    (bare / "predictions.csv").write_text("x\n1\n")
    page = tmp_path / "page.html"
    for folder, words in (
        (old, "no valid views"),
        (short, "has 3 videos"),
        (twice, "share a name"),
        (ragged, "row 1 has 7 cells, but the header has 6"),
        (bare, "not a complete table"),
        (tmp_path / "none", "name the folder of a run"),
    ):
        with pytest.raises(UserError, match=words):
            compare([good, folder], page)
    with pytest.raises(UserError, match="at least two"):
        compare([good], page)
    compare([good, good], page)
    compare([good, good], page)  # its own page is replaced
    page.write_text("mine")
    with pytest.raises(UserError, match="no page of vivit-train"):
        compare([good, good], page)


def test_the_command_compares(tmp_path: Path) -> None:
    folders = [str(result(tmp_path / name, videos("+-+-"))) for name in "ab"]
    done = CliRunner().invoke(app, ["compare", *folders, "--out", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    assert "0.0 points (95 % CI 0.0 to 0.0)" in done.output
    assert "+0" not in done.output + (tmp_path / "page.html").read_text()
