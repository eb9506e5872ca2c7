"""Hydra's flags among the words of a command line: each takes effect, or one message says why not."""

from pathlib import Path

import pytest

from vivit_train.tools.flags import checked_words
from vivit_train.utils.errors import UserError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config-dir", "nowhere"], "--config-dir nowhere: there is no such folder"),
        (["-cd=nowhere", "-m", "seed=1,2"], "--config-dir nowhere: there is no such folder"),
        (["--config-path", "/nowhere"], "--config-path /nowhere: there is no folder /nowhere"),
        (["--config-name", "mine"], "--config-name mine: there is no mine.yaml in"),
        (["--config-name=eval"], "--config-name eval: this command needs train"),
        (["-cn", "model/vivit_st"], "--config-name model/vivit_st: this command needs train"),
        (["--config-name"], "--config-name needs a value"),
        (["--cfg", "foo"], "--cfg foo: must be one of job, hydra, all"),
        (["--info", "foo"], "--info foo: must be one of all, config"),
        (["--multirun=3"], "--multirun takes no value, not 3"),
        (["--run", "--multirun"], "--run and --multirun exclude each other"),
        (["--cfg", "job", "-m"], "--multirun and --cfg exclude each other"),
        (["--resolve"], "--resolve needs --cfg job"),
        (["--package", "optimizer"], "--package needs --cfg job"),
        (["--cfg", "job", "-p", "optimzer"], "--package optimzer: there is no such key; did you mean optimizer?"),
        (["--shell-completion"], "--shell-completion needs install=bash"),
        (["--epochs", "3"], "--epochs is no flag, and keys have no hyphens: KEY=VALUE (did you mean trainer"),
        (["data=[1,2]"], "data=[1,2]: a group has one option: choose from checkpoint, csv, "),
        (["optimizer={}"], "optimizer={}: a group has one option: choose from adamw, sgd"),
        (["~loss"], "~loss: no option of this group is chosen"),
        (["optimizer", "=", "sgd"], "= is not an override: expected KEY=VALUE, without blanks around ="),
        (["--c"], "--c is cut short: it could be --cfg"),
        (["--cfg", "job", "-c=all"], "--cfg is given with job and with all: leave out one of them"),
        (["data=csv"], "data is set to csv and to folder: leave out one of them"),
        ([""], "one of the words is empty"),
        (["hydra.searchpath=[file://nowhere]"], "hydra.searchpath: there is no folder nowhere"),
    ],
)
def test_a_flag_without_effect_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        checked_words([*words, "data=folder"], "train") if words[-1][:1] != "-" else checked_words(words, "train")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_flags_may_be_anywhere_and_come_first(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [train]\n")
    words = ["seed=1", "--config-dir", str(tmp_path), "data=folder", "-cn", "mine", "-m"]
    assert checked_words(words, "train") == [*words[1:3], *words[4:], "seed=1", "data=folder"]
    assert checked_words(["--info", "seed=1"], "train") == ["--info=all", "seed=1"]
    assert checked_words(["--info", "config"], "train") == ["--info=config"]
    assert checked_words(["data=folder", "--hydra-help"], "train") == ["--hydra-help"]


def test_a_key_that_is_typed_twice_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts append the words of a user to their own, so the last value counts."""
    words = ["seed=1", "data=folder", "seed=2", "data=folder"]
    assert checked_words(words, "train") == words
    assert capsys.readouterr().out == "note     seed=2 takes the place of seed=1, which is also typed\n"
    checked_words([*words, "--cfg", "job"], "train")
    assert capsys.readouterr().out == ""
