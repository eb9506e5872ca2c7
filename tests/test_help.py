"""--help names every key with its default, type and meaning, and so does the page in docs/."""

from pathlib import Path

import pytest
from helpers import ROOT, run_script

from vivit_train.help import all_keys, answer_help, configuration_page, overview, topic
from vivit_train.keys import group_options, groups
from vivit_train.utils.errors import UserError

CONF = ROOT / "conf"


@pytest.mark.parametrize(("script", "words"), [("train.py", ["--help"]), ("eval.py", ["-h"])])
def test_the_help_fits_on_one_screen_and_starts_nothing(script: str, words: list[str], tmp_path: Path) -> None:
    done = run_script(script, *words, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python {script}")
    assert len(done.stdout.splitlines()) <= 50
    assert not list(tmp_path.iterdir())


def test_every_group_and_option_is_listed() -> None:
    text = overview("train", CONF)
    for group in groups(CONF):
        for option in group_options(CONF, group):
            assert option in text, group
    assert "vivit_fe*" in text  # the default
    assert "_base" not in text
    assert "_reset" not in text


def test_a_group_has_a_page_and_so_has_a_key() -> None:
    page = topic("train", CONF, "optimizer")
    for words in (
        "optimizer=adamw: AdamW",
        "optimizer=sgd: SGD",
        "optimizer.lr=0.0001 (a number)",
        "peak learning",
    ):
        assert words in page
    key = topic("train", CONF, "data.padding")
    assert key.startswith("  data.padding=wrap (one of wrap, repeat_last, black)")
    assert "wrap restarts it" in key


def test_a_name_that_is_no_key_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"--help learning_rate: there is no such group or key; .* --help lists them"
    ):
        answer_help("train", CONF, ["--help", "learning_rate"])


@pytest.mark.parametrize("command", ["train", "eval"])
def test_every_key_has_a_meaning(command: str) -> None:
    inherited = (
        "frames",
        "stride",
        "fps",
        "sampling",
        "padding",
        "short_side",
        "crop",
        "resize_mode",
        "resize",
        "square_pixels",
    )
    inherited += ("num_workers", "decoder", "max_epochs", "gradient_clip_val")  # eval.yaml: as train.yaml's
    silent = [key.name for key in all_keys(command, CONF) if not key.meaning]
    assert [name for name in silent if command == "train" or not name.endswith(inherited)] == []


def test_the_page_is_what_make_configuration_writes() -> None:
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == configuration_page(CONF)
