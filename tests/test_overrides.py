"""The words after `vivit doctor` and `vivit bench`: a folder, overrides, or one sentence on what is wrong."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from vivit_train.tools.cli import app
from vivit_train.tools.overrides import compose_words
from vivit_train.utils.errors import UserError


@pytest.mark.parametrize("name", ["videos", "my videos, [1]", "it's", "走る", "a\\", "a\\'b"])
def test_a_folder_is_data_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    cfg = compose_words([str(tmp_path / name), "data.frames=8"], tmp_path / "it's a run")
    assert (cfg.data.name, cfg.data.root, cfg.data.frames) == ("folder", str(tmp_path / name), 8)
    assert cfg.run_dir == str(tmp_path / "it's a run")


def test_a_configuration_of_one_s_own(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.yaml").write_text("defaults: [folder, _self_]\nname: mine\nframes: 6\n")
    cfg = compose_words([f"hydra.searchpath=[file://{tmp_path}]", "data=mine", "recipe=folder"], tmp_path)
    assert cfg.data.frames == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/videos"], "nowhere/videos is neither a folder nor an override such as data.frames=16"),
        (
            [__file__],
            f"{__file__} is a file: to read lists, set data=csv data.root=DIR data.train=FILE data.val=FILE",
        ),
        (["data.frames=[1"], "data.frames=[1 is not an override: expected KEY=VALUE"),
        (["data=foldr"], "data=foldr does not exist: choose from checkpoint, csv, cvat, demo, "),
        (["data.rot=1"], "data.rot: there is no such key; did you mean data.root?"),
        (["recipe.optimizer.lr=1"], "recipe.optimizer.lr is now optimizer.lr"),
        (["lr=1"], "lr: there is no such key; did you mean optimizer.lr?"),
        (["data=csv", "data=folder"], "data is set to csv and to folder: leave out one of them"),
        (["run_dir=x"], "run_dir=x has no effect here"),
        (["+data.frames=3"], "data.frames has a value already: write data.frames=VALUE, without +"),
    ],
)
def test_a_wrong_word_is_one_sentence(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        compose_words(words, tmp_path)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("words", [[], ["data.frames=8"], ["data.root=videos"]])
@pytest.mark.parametrize("command", ["doctor", "bench loader"])
def test_without_videos_the_tools_ask_for_them(
    command: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [*command.split(), *words])
    assert (
        str(result.exception)
        == f"which videos? vivit {command} FOLDER, or vivit {command} data=NAME data.root=DIR"
    )
    assert not list(tmp_path.iterdir())
