"""Wrong options and arguments of `vivit`, in real processes: one message, how to get help, and an exit code."""

import os
from pathlib import Path

import pytest
from forked import run_python


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        ("predict run a.mp4 --view 4x3", "there is no option --view (did you mean --views?)", 2),
        ("predict run", "VIDEO... is missing: expected CKPT VIDEO...", 2),
        ("predict run a.mp4 --top=0", "--top 0: must be a whole number of at least 1", 2),
        ("explain run a.mp4 --method saliency", "--method saliency: must be gradient or rollout", 2),
        ("export", "CKPT is missing: expected CKPT", 2),
        ("predict run a.mp4 --top 2 --top 3", "--top is given with 2 and with 3: leave out all but one", 2),
        ("prepare a b --shard=", "one of the words is empty: leave it out, or write its value", 1),
        ("prepare a b c", "c is too much: expected SRC DST", 1),
        ("prepare a b --crf 99", "--crf 99: must be a whole number between 0 and 51", 1),
        ("prepare a b --timeout nan", "--timeout nan: must be a number of at least 0", 1),
        ("replay step.pt --out", "--out needs a value", 1),
        ("doctor videos --every-frame=3", "--every-frame=3: --every-frame takes no value", 1),
        (
            "probe videos --batch-size 4",
            "there is no option --batch-size (did you mean global_batch_size=VALUE?)",
            1,
        ),
        ("bench loader videos --data.crop 112", "did you mean data.crop=VALUE?", 1),
        ("crossval videos --nosuch", "there is no option --nosuch; keys of the configuration have no hyphens", 1),
        ("tarin", "tarin is no command (did you mean train?)", 1),
        ("bench modle", "modle is no command (did you mean model?)", 1),
    ],
)
def test_a_wrong_word_is_one_message(words: str, message: str, code: int, tmp_path: Path) -> None:
    done = run_python("-m", "vivit_train.tools.cli", *words.split(), folder=tmp_path, env=os.environ)
    command = " ".join(["vivit", *words.split()[: 2 if words.startswith("bench loader") else 1]])
    command = command.removesuffix(" tarin")
    assert done.returncode == code
    assert done.stderr.startswith(f"error: {command}: ")
    assert done.stderr.endswith(f"; {command} --help explains more\n")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["-h"], ["predict", "-h"], ["bench", "loader", "--help"]])
def test_help_has_two_names(words: list[str], tmp_path: Path) -> None:
    done = run_python("-m", "vivit_train.tools.cli", *words, folder=tmp_path)
    assert done.returncode == 0
    assert "Usage: vivit" in done.stdout
