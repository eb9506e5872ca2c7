"""Folders of strangers: links, pipes, bombs and tables of other kinds where a command writes and reads again."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, Happened, run_script
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from typer.testing import CliRunner

from vivit_train.changes import write_record
from vivit_train.data.annotations.files import read_classes
from vivit_train.data.bad_videos import BadVideoLog
from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.files import read_json_object
from vivit_train.models.weights.flax_file import read_flax
from vivit_train.results import Rows
from vivit_train.run import best_score
from vivit_train.tools.cli import app
from vivit_train.tools.compare import read_result
from vivit_train.tools.crossval.run import Plan, take_folder
from vivit_train.tools.doctor.inspect_files import Settings as DoctorSettings
from vivit_train.tools.doctor.inspect_files import inspect_files
from vivit_train.tools.doctor.run import examine
from vivit_train.tools.encode import Settings
from vivit_train.tools.export.card import training_lines
from vivit_train.tools.manifest import FIELDS, is_prepared, read_rows
from vivit_train.tools.optuna_sweeper import Search, open_study
from vivit_train.tools.prepare import prepare
from vivit_train.tools.sweep import Outcome, read_outcome, write_summary
from vivit_train.training.checkpoint import KEY, Metadata
from vivit_train.training.features import CLIPS, FeatureStore, StoredClip
from vivit_train.training.loggers import MetricsFile
from vivit_train.utils.errors import UserError
from vivit_train.utils.lock import FolderLock
from vivit_train.utils.run_folder import RunFolder

SECTION = "Strangers' files"
Config = Callable[..., DictConfig]
HUGE = 200 << 30  # bytes of zeros, which an archive holds in a few


def sparse(file: Path) -> Path:
    """A file of 200 GB that takes no room."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    os.truncate(file, HUGE)
    return file


@pytest.mark.fault(SECTION)
@pytest.mark.parametrize(
    "name", [".lock", "metrics.csv", "outcome.json", "checkpoints/last.ckpt.part", "curves.png"]
)
def test_a_pipe_in_a_run_s_folder_does_not_wait(name: str, tmp_path: Path, happened: Happened) -> None:
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    os.mkfifo(file)
    with pytest.raises(UserError, match="is a pipe or a device, not a file") as error:
        FolderLock(tmp_path / "run")
    happened(f"A run's folder from a stranger, in which {name} is a named pipe", error.value)


def record(file: Path) -> object:
    return write_record(file.parent, "differences", None)


def doctor(file: Path) -> object:
    return inspect_files([], file, DoctorSettings(4, 2, None, 36), 1, 5.0)


def metrics(file: Path) -> object:
    return MetricsFile(str(file.parent), first_step=9)


READERS: dict[str, Callable[[Path], object]] = {
    "recipe_differences.txt": record,
    "metrics.csv": metrics,
    "bad_videos.csv": lambda file: BadVideoLog(file, 0.1).listed,
    "outcome.json": read_outcome,
    "manifest.csv": read_rows,
    "files.jsonl": doctor,
    "classes.txt": read_classes,
    "x.flax": read_flax,
    "optuna.journal": lambda file: open_study(str(file)),
    "metrics.json": lambda file: read_result(file.parent),
    "predictions.csv": Rows.read,
    "plan.json": lambda file: take_folder(file.parent, Plan([], "source", [0], {}, 10.0)),
    "config.json": read_json_object,
}
OTHERWISE = {
    "recipe_differences.txt",
    "metrics.csv",
    "bad_videos.csv",
    "files.jsonl",
    "optuna.journal",
    "plan.json",
}


@pytest.mark.fault(SECTION)
@pytest.mark.parametrize("name", READERS)
def test_a_file_of_200_gb_is_refused_unread(name: str, tmp_path: Path, happened: Happened) -> None:
    if name == "optuna.journal":
        pytest.importorskip("optuna", minversion="4.2", reason="needs the extra `optuna`")
    with pytest.raises(UserError, match=rf"{name}.* (bytes|larger)") as error:
        READERS[name](sparse(tmp_path / name))
    happened(f"{name} of 200 GB", error.value)


@pytest.mark.fault(SECTION)
@pytest.mark.parametrize("name", sorted(READERS.keys() - OTHERWISE))
def test_a_pipe_is_refused_unopened(name: str, tmp_path: Path, happened: Happened) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}") as error:
        READERS[name](tmp_path / name)
    happened(f"{name} is a named pipe", error.value)


@pytest.mark.fault(SECTION)
@pytest.mark.parametrize("name", ["metrics.csv", "bad_videos.csv", "outcome.json"])
@pytest.mark.parametrize("content", [b"step,\xff\n1,2\n", b"step,x\n1," + b"x" * 200_000], ids=["bytes", "cell"])
def test_a_table_of_another_kind_is_one_message(
    name: str, content: bytes, tmp_path: Path, happened: Happened
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as error:
        READERS[name](tmp_path / name)
    happened(f"{name} that is no such table ({content[:12]!r}...)", error.value)


@pytest.mark.fault(SECTION)
def test_lines_of_other_forms_are_no_results_of_the_doctor(tmp_path: Path, happened: Happened) -> None:
    file = tmp_path / "files.jsonl"
    lines = [
        "[" * 100_000,
        "[1]",
        '{"path": 3}',
        '{"path": "a", "scan": "\u00e9"}',
        "9" * 5001,
        '{"path": "a", "size": true}',
    ]
    file.write_text("\n".join([*lines, '{"path": "cut']), encoding="utf-8")
    assert inspect_files([], file, DoctorSettings(4, 2, None, 36), 1, 5.0) == {}
    assert file.read_text(encoding="utf-8").splitlines() == lines
    happened("files.jsonl with lines of other forms", "they count as no results, and the files are inspected")


def test_a_record_in_other_bytes_is_kept_and_a_table_s_odd_steps_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "recipe_differences.txt").write_bytes(b"\xff\nchanged at step 3: x\n")
    write_record(tmp_path, "differences", None)
    assert (tmp_path / "recipe_differences.txt").read_text() == "differences\n\nchanged at step 3: x\n"
    (tmp_path / "metrics.csv").write_text(f"step,val/loss\n3,0.5\n\u00b2,1\n{'9' * 5001},2\n,\n4\n12,1\n")
    assert MetricsFile(str(tmp_path), first_step=9).experiment.metrics == [
        {"step": "3", "val/loss": "0.5"},
        {"step": "4"},
    ]


@pytest.mark.fault(SECTION)
def test_a_log_of_200_gb_costs_a_resumed_run_nothing(tmp_path: Path, happened: Happened) -> None:
    log = sparse(tmp_path / "train.log")
    sparse(tmp_path / ".hydra/config.yaml")
    (tmp_path / "metrics.csv").touch()
    with RunFolder(tmp_path, {"resume": "auto", "ckpt_path": None}):
        with log.open("a") as file:
            file.write("refused")
        (tmp_path / ".hydra/config.yaml").write_text("new")
    assert log.stat().st_size == HUGE
    happened("train.log and .hydra/config.yaml of 200 GB in a folder that is resumed", "they are not read")


def callbacks_of(value: Any) -> dict[str, Any]:
    return {"ModelCheckpoint{}": value}


@pytest.mark.fault(SECTION)
def test_the_score_of_a_complete_run_is_a_number_or_none(tmp_path: Path, happened: Happened) -> None:
    (tmp_path / "checkpoints").mkdir()

    def score(callbacks: Any) -> float:
        content = {KEY: {}, "state_dict": {}, "callbacks": callbacks}
        torch.save(content, tmp_path / "checkpoints/best.ckpt")
        return best_score(tmp_path)

    assert score(callbacks_of({"best_model_score": torch.tensor(0.5)})) == 0.5
    odd = [[1], 3, callbacks_of(3), callbacks_of({}), {3: 4}]
    odd += [callbacks_of({"best_model_score": value}) for value in ("${oc.env:HOME}", torch.zeros(3), None)]
    assert all(score(one) != score(one) for one in odd)
    happened("best.ckpt of a complete run, whose state of callbacks is something else", "the run has no score")


@pytest.mark.fault(SECTION)
@pytest.mark.parametrize(
    "name",
    [
        "clean/train.csv",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("files.jsonl", "report.html", "clean")),
    ],
)
def test_a_link_in_the_doctor_s_folder_leads_to_no_file_outside(
    name: str, videos: Path, config: Config, tmp_path: Path, happened: Happened
) -> None:
    precious, link = tmp_path / "precious", tmp_path / "out" / name
    link.parent.mkdir(parents=True)
    precious.write_text("of somebody else")
    link.symlink_to(precious)
    with pytest.raises(UserError, match="is a link out of the folder") as error:
        examine(config("data=folder", f"data.root={videos}"), tmp_path / "out", 1)
    assert precious.read_text() == "of somebody else"
    happened(f"A doctor's folder from a stranger, in which {name} is a link", error.value)


@pytest.mark.fault(SECTION)
def test_links_in_the_folders_of_prepare_lead_nowhere(tmp_path: Path, happened: Happened) -> None:
    source, target, elsewhere = tmp_path / "src", tmp_path / "dst", tmp_path / "elsewhere"
    for folder in (source / "a", target, elsewhere):
        folder.mkdir(parents=True)
    (source / "a/x.mp4").write_text("no video")
    (elsewhere / "x.mp4").write_text("of somebody else")
    (target / "a").symlink_to(elsewhere)
    with pytest.raises(UserError, match="that are links to elsewhere") as error:
        prepare(source, target, Settings(), workers=1)
    assert (elsewhere / "x.mp4").read_text() == "of somebody else"
    happened("A folder below DST of `vivit prepare` that is a link to elsewhere", error.value)


@pytest.mark.fault(SECTION)
def test_prepare_copies_no_secret_and_waits_for_no_pipe(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, happened: Happened
) -> None:
    source, target = tmp_path / "src", tmp_path / "dst"
    for folder in (source, target):
        folder.mkdir()
    (source / "x.mp4").write_text("no video")
    (tmp_path / "secret").write_text("secret")
    (source / "labels.txt").symlink_to(tmp_path / "secret")
    os.mkfifo(target / "manifest.csv")
    with pytest.raises(UserError, match="1 of 1 video could not be re-encoded"):
        prepare(source, target, Settings(), workers=1)
    assert not (target / "labels.txt").exists()
    said = next(text for text in caplog.messages if "labels.txt" in text)
    happened("labels.txt in SRC of `vivit prepare` that is a link to another file", said)
    (target / "manifest.csv").write_text(",".join(FIELDS) + "\n")
    assert is_prepared(str(target / "x.mp4"))
    (target / "manifest.csv").unlink()
    os.mkfifo(target / "manifest.csv")
    assert not is_prepared(str(target / "x.mp4"))


def saved_step(file: Path) -> None:
    """A small step as `callbacks.health` saves it."""
    sizes: dict[str, Any] = {"frames": 4, "image_size": 32, "dim": 16, "depth": 1, "heads": 2}
    weights = ViViT("vivit_st", num_classes=2, **sizes).state_dict()
    batch = {"video": torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8), "label": torch.tensor([[1]]), "seed": 0}
    batch |= {"paths": ["x"], "frame_numbers": torch.zeros(1, 4), "times_s": torch.zeros(1, 4), "loss": 1.0}
    step = {"step": 1, "epoch": 1, "rank": 0, "processes": 1, "precision": "32", "device": "cpu"}
    step |= {"gradient_norm": 1.0, "micro_batches": [batch]}
    model = {"_target_": "vivit", "model": "vivit_st", **sizes}
    config = {"model": model, "loss": {"_target_": "cross_entropy"}, "mixup": 0.0, "cutmix": 0.0}
    metadata = Metadata(config, {"": ["a", "b"]}, [0.5] * 3, [0.5] * 3).to_dict()
    state = {f"net.{name}": weight for name, weight in weights.items()}
    torch.save({"state_dict": state, KEY: metadata, "replay": step}, file)


@pytest.mark.fault(SECTION)
def test_a_link_beside_a_saved_step_is_replaced(tmp_path: Path, happened: Happened) -> None:
    saved_step(tmp_path / "x.pt")
    (tmp_path / "precious").write_text("of somebody else")
    (tmp_path / "x.png").symlink_to(tmp_path / "precious")
    CliRunner().invoke(app, ["replay", str(tmp_path / "x.pt")], catch_exceptions=False)
    assert (tmp_path / "precious").read_text() == "of somebody else"
    assert (tmp_path / "x.png").stat().st_size > 1000
    happened("x.png beside a saved step, a link to another file, and `vivit replay x.pt`", "the link is replaced")


@pytest.mark.fault(SECTION)
def test_an_export_publishes_no_file_that_a_run_s_folder_links_to(tmp_path: Path, happened: Happened) -> None:
    (tmp_path / "secret").write_text("s3cret-of-a-file")
    (tmp_path / "run").mkdir()
    for name in ("metrics.json", "weight_report.txt", "recipe_differences.txt"):
        (tmp_path / "run" / name).symlink_to(tmp_path / "secret")
    assert training_lines(tmp_path / "run") == ["- Training: the run folder holds no results."]
    for name, text in (("weight_report.txt", b""), ("recipe_differences.txt", b"\xff```\x1b[31m")):
        (tmp_path / "run" / name).unlink()
        (tmp_path / "run" / name).write_bytes(text)
    assert training_lines(tmp_path / "run")[-2:] == ["\ufffd...\\x1b[31m", "```"]
    happened("recipe_differences.txt of a run's folder, a link to a secret, and `vivit export`", "it is left out")


@pytest.mark.fault(SECTION)
def test_a_sweep_s_folder_of_a_stranger_costs_no_file_and_no_job_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], happened: Happened
) -> None:
    for number in range(7):
        (tmp_path / str(number)).mkdir()
    Outcome(0, ["seed=0"], 0.5, failed=False, note="").write(tmp_path / "0")
    odd = {"job": 1, "overrides": [], "score": 0.5, "failed": False, "note": ""}
    for number, change in ((1, {"score": 10**400}), (2, {"score": float("nan")}), (3, {"job": 10**30})):
        (tmp_path / f"{number}/outcome.json").write_text(json.dumps(odd | change))
    os.mkfifo(tmp_path / "4/outcome.json")
    (tmp_path / "5/outcome.json").mkdir()
    (tmp_path / "precious").write_text("of somebody else")
    (tmp_path / "summary.csv").symlink_to(tmp_path / "precious")
    assert [job.job for job in write_summary(tmp_path)] == [0]
    assert (tmp_path / "precious").read_text() == "of somebody else"
    said = capsys.readouterr().out
    assert said.count("is not the outcome of a run") == 5
    happened("outcome.json of a job with a score of 10^400 or NaN, or as a pipe or a folder", said.splitlines()[0])


@pytest.mark.fault(SECTION)
def test_a_search_s_file_with_other_scores_or_as_a_pipe_is_one_message(tmp_path: Path, happened: Happened) -> None:
    pytest.importorskip("optuna", minversion="4.2", reason="needs the extra `optuna`")
    file, date = str(tmp_path / "journal"), "2020-01-01T00:00:00.000000"
    open_study(file)
    with open(file, "a") as lines:
        for line in (
            {"op_code": 4, "study_id": 0, "datetime_start": date},
            {"op_code": 6, "trial_id": 0, "state": 1, "values": ["os.system"], "datetime_complete": date},
        ):
            lines.write(json.dumps(line | {"worker_id": "x"}) + "\n")
    sampler = OmegaConf.create({"_target_": "optuna.samplers.RandomSampler"})
    with pytest.raises(UserError, match="a score that is no finite number") as error:
        Search(file, n_trials=2, n_jobs=1, params=OmegaConf.create({}), seed=0, sampler=sampler).sweep([])
    happened("A search's file with a score that is text", error.value)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is not a file"):
        open_study(str(tmp_path / "pipe"))


@pytest.mark.slow
@pytest.mark.fault(SECTION)
def test_a_link_among_the_jobs_of_a_sweep_leads_to_no_file_outside(tmp_path: Path, happened: Happened) -> None:
    """Hydra itself writes the configuration of each job."""
    (tmp_path / "precious").write_text("of somebody else")
    (tmp_path / "sweep/0/.hydra").mkdir(parents=True)
    (tmp_path / "sweep/0/.hydra/config.yaml").symlink_to(tmp_path / "precious")
    result = run_script("train.py", "-m", "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep", folder=tmp_path)
    assert result.returncode == 1
    assert (tmp_path / "precious").read_text() == "of somebody else"
    assert "is a link out of the folder" in result.stderr
    happened("A sweep's folder from a stranger, in which 0/.hydra/config.yaml is a link", result.stderr)


@pytest.mark.fault(SECTION)
@pytest.mark.parametrize("flag", ["--experimental-rerun", pytest.param("--exp", marks=pytest.mark.slow)])
def test_no_pickle_of_a_run_s_folder_is_executed(flag: str, tmp_path: Path, happened: Happened) -> None:
    trap = f"cposix\nsystem\n(S'touch {tmp_path}/trap'\ntR."
    (tmp_path / "config.pickle").write_text(trap)
    result = run_script("train.py", flag, f"{tmp_path}/config.pickle", folder=tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "trap").exists()
    happened(f"`train.py {flag} config.pickle` with a pickle that runs a command", result.stderr)


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghij", "bcdefghijk", strict=True)
)
YAML = {
    "anchors that unfold to billions of items": LAUGHS,
    "a tag that names os.system": "!!python/object/apply:os.system ['touch trap']\n",
    "an interpolation of the environment": "- data.root=${oc.env:VIVIT_SECRET}\nmodel: ${oc.env:VIVIT_SECRET}\n",
    "an object that OmegaConf creates": "hydra: ${oc.create:{_target_: os.system, command: touch trap}}\n",
}


@pytest.mark.slow
@pytest.mark.fault(SECTION)
def test_no_yaml_of_a_run_s_folder_is_read(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happened: Happened
) -> None:
    monkeypatch.setenv("VIVIT_SECRET", "s3cret-of-the-environment")
    data, run = ["data=folder", f"data.root={videos}"], tmp_path / "run"
    train_it = ["train.py", *data, *TINY, "callbacks.contact_sheet=null", f"hydra.run.dir={run}"]
    score = ["eval.py", f"ckpt_path={run}/checkpoints/best.ckpt", f"hydra.run.dir={run}/eval", "overwrite=true"]
    assert run_script(*train_it, folder=tmp_path).returncode == 0
    for epochs, (what, text) in enumerate(YAML.items(), 2):
        for name in ("config", "hydra", "overrides"):
            (run / f".hydra/{name}.yaml").write_text(text)
        resumed = [*train_it, "resume=auto", f"trainer.max_epochs={epochs}"]
        for command in (resumed, [*score, "trainer.accelerator=cpu"]):
            result = run_script(*command, folder=tmp_path)
            assert result.returncode == 0, result.stderr
            assert "s3cret" not in result.stdout + result.stderr
        assert not list(tmp_path.rglob("trap"))
        happened(f".hydra/*.yaml of a run's folder with {what}; then resume=auto and eval.py", "they are not read")
    monkeypatch.chdir(run)
    CliRunner().invoke(app, ["doctor", *data, "--workers", "1"], catch_exceptions=False)
    assert (run / "doctor/folder/report.html").is_file()


def damaged(folder: Path, kind: str) -> None:
    """Puts something into a folder of features that is no file of ours."""
    file = folder / "1.safetensors"
    match kind:
        case "pipe":
            os.mkfifo(file)
        case "link":
            file.symlink_to("/etc/passwd")
        case "brackets":
            save_file({"features": torch.zeros(1, 2)}, file, metadata={CLIPS: "[" * 100_000})
        case "rows":
            save_file({"features": torch.zeros(7, 2)}, file, metadata={CLIPS: '[["a", [1]]]'})
        case "shape":
            save_file({"features": torch.zeros(1, 3)}, file, metadata={CLIPS: '[["b", [1]]]'})


@pytest.mark.fault(SECTION)
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pipe", "is a pipe or a device"),
        ("link", "is a link out of the folder"),
        ("brackets", ""),
        ("rows", ""),
        ("shape", "does not fit the other files"),
    ],
)
def test_a_folder_of_features_from_a_stranger(
    kind: str, message: str, tmp_path: Path, happened: Happened, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = StoredClip("a", (1,)), StoredClip("b", (1,))
    store = FeatureStore(tmp_path, {"x": 1})
    store.add([a], {"features": torch.ones(1, 2)})
    damaged(store.folder, kind)
    if message:
        with pytest.raises(UserError, match=message) as error:
            FeatureStore(tmp_path, {"x": 1}).load([a, b])
        happened(f"A folder of features with a file that is no file of ours ({kind})", error.value)
    else:
        assert FeatureStore(tmp_path, {"x": 1}).load([a])["features"].tolist() == [[1, 1]]
        happened(f"A folder of features with a file that is no file of ours ({kind})", caplog.messages[-1])
