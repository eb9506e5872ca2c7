"""Files from strangers are data: nothing in them runs, reads the environment or a file, costs much, or lies."""

import copy
import json
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Happened, run_script
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from typer.testing import CliRunner

from vivit_train.models.weights.huggingface import load_huggingface, save_huggingface
from vivit_train.models.weights.load import load_pretrained
from vivit_train.run import evaluate, train
from vivit_train.tools.cli import app
from vivit_train.tools.optuna_sweeper import open_study
from vivit_train.training.checkpoint import KEY, Metadata, build_net, load_checkpoint
from vivit_train.utils.errors import UserError

Config = Callable[..., DictConfig]
SECRET = "s3cret-of-the-environment"
IN_FILE = "s3cret-of-a-file"

# every resolver of OmegaConf and Hydra, nested, escaped, and what calls where something resolves them
HOSTILE = [
    '${oc.create:{_target_: numpy.testing.runstring, _args_: [\'open("TRAP", "w")\', {}]}}',
    "${oc.create:'{_target_: builtins.open, file: TRAP, mode: w}'}",
    "${oc.decode:'{_target_: pathlib.Path.write_text, _args_: [TRAP, x]}'}",
    "${oc.create:{_target_: sympy.sympify, a: '__import__(\\'os\\').system(\\'touch TRAP\\')'}}",
    "${oc.env:VIVIT_SECRET}",
    "${oc.env:${oc.decode:VIVIT_SECRET}}",
    "\\${oc.env:VIVIT_SECRET}",
    "\\\\${oc.env:VIVIT_SECRET,fallback}",
    "${oc.select:seed,${oc.env:VIVIT_SECRET}}",
    "${oc.dict.values:model}",
    "${oc.dict.keys:data}",
    "${oc.deprecated:seed}",
    "${hydra:runtime.cwd}",
    "${now:%Y}",
    "${python_version:}",
    "${model.${oc.env:VIVIT_SECRET}}",
    "${...}",
    "TRAP.txt",
    "SECRETFILE",
    "file://SECRETFILE",
    "reference://x::http://127.0.0.1:9/x",
    {"_target_": "os.system", "_args_": ["touch TRAP"]},
    {"_target_": "${oc.env:VIVIT_SECRET}"},
    {"_target_": "vivit_train.run.os.system", "command": "touch TRAP"},
    {"_target_": "subprocess.run", "_partial_": True, "args": ["touch", "TRAP"]},
    {"${oc.env:VIVIT_SECRET}": "${oc.env:VIVIT_SECRET}"},
    ["${oc.env:VIVIT_SECRET}", {"_target_": "os.system", "command": "touch TRAP"}],
]


@pytest.fixture
def stranger(videos: Path, config: Config) -> dict[str, Any]:
    """A checkpoint to put something bad into, made without training."""
    cfg = config("data=folder", f"data.root={videos}", "train=all")
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    classes = {"": list(instantiate(cfg.data, _convert_="all").splits.classes[""])}
    net = build_net(settings["model"], classes)
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    metadata = Metadata(settings, classes, [0.5] * 3, [0.5] * 3).to_dict()
    return {"state_dict": state, "vivit_train": metadata, "global_step": 1, "epoch": 0}


@contextmanager
def cheap(seconds: float = 5, megabytes: int = 500) -> Iterator[None]:
    """Fails where the block takes long, in time of the processor, or much memory."""
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert time.process_time() - began < seconds
    assert grown < megabytes, grown


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value that is no container, and to each container."""
    if path:
        yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from leaves(value, (*path, key))


def planted(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of a tree with another value at one place."""
    tree = copy.deepcopy(node)
    at = tree
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return tree


def filled(value: Any, trap: Path, secret: Path) -> Any:
    """`HOSTILE` with the names of this test's files."""
    return json.loads(json.dumps(value).replace("TRAP", str(trap)).replace("SECRETFILE", str(secret)))


class Harmless:
    """Evaluates checkpoints that hold something hostile, and asserts that nothing came of it."""

    def __init__(self, config: Config, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.config, self.folder, self.capfd = config, folder, capfd
        self.trap, self.secret = folder / "trap", folder / "secret"
        self.secret.write_text(f"{IN_FILE}\n{IN_FILE} 2\n")

    def evaluate(self, checkpoint: dict[str, Any], about: object) -> str:
        """The message of the refusal; "" where the value has no part in an evaluation."""
        path, message = self.folder / "stranger.ckpt", ""
        torch.save(checkpoint, path)
        with cheap(20):
            try:
                evaluate(self.config(f"ckpt_path={path}", "data.num_workers=0", name="eval"))
            except UserError as error:
                message = str(error)
        out, err = self.capfd.readouterr()
        run = self.folder / "run"
        files = "".join(
            file.read_text(errors="replace") for file in run.glob("*") if file.suffix in (".csv", ".json")
        )
        for said in (message, out, err, files):
            assert SECRET not in said, about
            assert IN_FILE not in said, about
        assert not self.trap.exists(), about
        assert len(message.splitlines()) <= 1, (about, message)
        return message


@pytest.fixture
def harmless(
    config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Harmless:
    monkeypatch.setenv("VIVIT_SECRET", SECRET)
    return Harmless(config, tmp_path, capfd)


def places(stranger: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Where the model and the data are stored: what an evaluation reads of a configuration."""
    config = stranger[KEY]["config"]
    nodes = [(node, *path) for node in ("model", "data", "loss") for path in leaves(config[node])]
    return [*nodes, ("seed",), ("micro_batch_size",)]


@pytest.mark.slow
@pytest.mark.fault("Strangers' files")
def test_hostile_strings_at_every_leaf_of_a_checkpoint_do_nothing(
    stranger: dict[str, Any], harmless: Harmless, happened: Happened
) -> None:
    where = places(stranger)
    assert len(where) > 60
    refused = 0
    for i, path in enumerate(where[::2]):  # every string comes in; all pairs in the slow test
        for value in (HOSTILE[i % len(HOSTILE)],):
            bad = filled(value, harmless.trap, harmless.secret)
            stored = planted(stranger[KEY]["config"], path, bad)
            message = harmless.evaluate(stranger | {KEY: stranger[KEY] | {"config": stored}}, (path, value))
            refused += bool(message)
    assert refused > len(where) / 4
    happened(
        "Interpolations of OmegaConf and Hydra, targets and paths at every place of a checkpoint's configuration",
        f"nothing runs or is read; {refused} of {len(where[::2])} are refused in one line, the rest are not used",
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_each_hostile_string_at_every_leaf(number: int, stranger: dict[str, Any], harmless: Harmless) -> None:
    for path in places(stranger):
        bad = filled(HOSTILE[number], harmless.trap, harmless.secret)
        stored = planted(stranger[KEY]["config"], path, bad)
        harmless.evaluate(stranger | {KEY: stranger[KEY] | {"config": stored}}, path)


@pytest.mark.fault("Strangers' files")
@pytest.mark.parametrize("part", ["classes", "mean", "std", "config", "multi_label"])
@pytest.mark.parametrize(
    "value", [HOSTILE[0], HOSTILE[-1], *(pytest.param(v, marks=pytest.mark.slow) for v in HOSTILE[1:-1])]
)
def test_hostile_metadata_does_nothing(
    part: str, value: Any, stranger: dict[str, Any], harmless: Harmless, happened: Happened
) -> None:
    bad = filled(value, harmless.trap, harmless.secret)
    assert harmless.evaluate(stranger | {KEY: stranger[KEY] | {part: bad}}, part)
    happened(f"Interpolations, targets and paths as the {part} of a checkpoint", "refused in one line")


@pytest.mark.fault("Strangers' files")
def test_a_hostile_configuration_is_text_where_a_run_resumes_or_starts(
    stranger: dict[str, Any], harmless: Harmless, videos: Path, happened: Happened
) -> None:
    path = harmless.folder / "x.ckpt"
    message = ""
    for value in (HOSTILE[0], "${oc.env:VIVIT_SECRET}", {"_target_": "os.system", "command": "touch TRAP"}):
        bad = filled(value, harmless.trap, harmless.secret)
        stored = planted(stranger[KEY]["config"], ("model", "pool"), bad)
        torch.save(stranger | {KEY: stranger[KEY] | {"config": stored}}, path)
        with pytest.raises(UserError, match=r"cannot (change when a run resumes|be resumed)") as error:
            train(harmless.config("data=folder", f"data.root={videos}", f"ckpt_path={path}"))
        net = build_net(harmless.config("data=folder").model, stranger[KEY]["classes"])
        report = load_pretrained(net, str(path))
        message = str(error.value)
        assert SECRET not in f"{message} {report} {harmless.capfd.readouterr()}"
        assert not harmless.trap.exists()
    happened("Interpolations and targets in a checkpoint that ckpt_path resumes or init.path starts from", message)


@pytest.mark.fault("Strangers' files")
def test_the_command_runs_nothing_of_a_checkpoint(
    stranger: dict[str, Any], tmp_path: Path, happened: Happened
) -> None:
    trap = tmp_path / "trap"
    code = f'${{oc.create:{{_target_: numpy.testing.runstring, _args_: [\'open("{trap}", "w")\', {{}}]}}}}'
    stranger[KEY]["config"]["data"]["reader"]["classes"] = code
    stranger[KEY]["config"]["data"]["squash"] = code
    torch.save(stranger, tmp_path / "x.ckpt")
    result = run_script("eval.py", f"ckpt_path={tmp_path}/x.ckpt", "trainer.accelerator=cpu", folder=tmp_path)
    assert result.returncode == 1
    assert not trap.exists()
    assert "Traceback" not in result.stderr
    assert "data.reader.classes is" in result.stderr
    happened("A string that OmegaConf would turn into a call of `numpy.testing.runstring`", result.stderr)


@pytest.mark.fault("Strangers' files")
@pytest.mark.parametrize("command", ["predict", "export"])
def test_the_other_commands_run_nothing_of_a_checkpoint(
    command: str, stranger: dict[str, Any], videos: Path, tmp_path: Path, happened: Happened
) -> None:
    words = {
        "predict": [str(videos / "val")],
        "export": ["--format", "safetensors", "--out", str(tmp_path / "out")],
    }
    stranger[KEY]["config"]["model"]["pool"] = filled(HOSTILE[0], tmp_path / "trap", tmp_path)
    torch.save(stranger, tmp_path / "x.ckpt")
    result = CliRunner().invoke(app, [command, str(tmp_path / "x.ckpt"), *words[command]], catch_exceptions=False)
    assert result.exit_code == 2
    assert not (tmp_path / "trap").exists()
    assert not (tmp_path / "out").exists()
    assert "model.pool is" in result.output
    happened(f"A string that OmegaConf would turn into a call, and `vivit {command}`", result.output)


@pytest.mark.fault("Strangers' files")
def test_a_class_of_a_trusted_package_is_called_and_nothing_that_it_imports(
    stranger: dict[str, Any],
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    happened: Happened,
) -> None:
    package = tmp_path / "mine_of_test"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import os\nfrom vivit_train.models.vivit import ViViTFactorizedEncoder\n\n\n"
        "class Mine(ViViTFactorizedEncoder):\n    def __init__(self, size, **kwargs):\n"
        "        super().__init__(**{k: v for k, v in kwargs.items() if v is not None})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model, path = stranger[KEY]["config"]["model"], tmp_path / "x.ckpt"

    def score(target: str, *words: str) -> Any:
        model["_target_"] = target
        torch.save(stranger, path)
        return evaluate(config(f"ckpt_path={path}", *words, name="eval"))

    with pytest.raises(UserError, match=r"refusing to call 'mine_of_test\.Mine'.*trusted=\[mine_of_test\]"):
        score("mine_of_test.Mine")
    assert score("mine_of_test.Mine", "trusted=[mine_of_test]")["n"] == 16
    with pytest.raises(UserError, match="nor defined in the trusted package") as error:
        score("mine_of_test.os.system", "trusted=[mine_of_test]")
    happened("`trusted=[mine]`, and a checkpoint that names `mine.os.system`", error.value)


SELF: list[Any] = []
SELF.append(SELF)
SHARED: Any = []
for _ in range(60):  # 2**60 items, in a file of a kilobyte
    SHARED = [SHARED, SHARED]
ABSURD: dict[str, tuple[tuple[Any, ...], Any]] = {
    "a million layers": (("config", "model", "depth"), 10**6),
    "a billion layers": (("config", "model", "depth"), 10**9),
    "a million temporal layers": (("config", "model", "temporal_depth"), 10**6),
    "a width of a billion": (("config", "model", "dim"), 10**9),
    "a hidden width of a billion": (("config", "model", "mlp_dim"), 10**9),
    "a billion frames": (("config", "model", "frames"), 10**9),
    "a billion sampled frames": (("config", "model", "sampled_frames"), 10**9),
    "an image of a billion pixels": (("config", "model", "image_size"), 10**9),
    "tubelets of zero": (("config", "model", "tubelet"), [0, 0, 0]),
    "a negative depth": (("config", "model", "depth"), -1),
    "no heads": (("config", "model", "heads"), 0),
    "a number of a million digits": (("config", "model", "depth"), 10**1_000_000),
    "a depth that is true": (("config", "model", "depth"), True),
    "dropping nan of the paths": (("config", "model", "drop_path"), float("nan")),
    "clips of a billion frames": (("config", "data", "frames"), 10**9),
    "crops of a billion pixels": (("config", "data", "crop"), 10**9),
    "a million loader processes": (("config", "data", "num_workers"), 10**6),
    "clips of 200 GB": (("config", "data", "frames"), 16_000),
    "a pool that is a list": (("config", "model", "pool"), ["cls"]),
    "a list that holds itself": (("config", "model", "tubelet"), SELF),
    "a list of a quintillion items": (("config", "data", "scale_jitter"), SHARED),
    "no configuration": (("config",), None),
    "no model": (("config", "model"), None),
    "no data": (("config", "data"), None),
    "no reader": (("config", "data", "reader"), None),
    "classes that are numbers": (("classes", ""), [1, 2, 3]),
    "no classes": (("classes",), {}),
    "a mean of nan": (("mean",), [0.5, float("nan"), 0.5]),
    "a std of zero": (("std",), [0.0, 0.0, 0.0]),
    "a mean of one number": (("mean",), [0.5]),
    "two classes of one name": (("classes", ""), ["approach"] * 8),
    "a key that is unknown": (("surprise",), 1),
}


@pytest.mark.fault("Strangers' files")
@pytest.mark.parametrize("what", ABSURD)
def test_absurd_checkpoints_are_refused_before_they_cost_anything(
    what: str, stranger: dict[str, Any], config: Config, tmp_path: Path, happened: Happened
) -> None:
    at, value = ABSURD[what]
    place = stranger[KEY]
    for key in at[:-1]:
        place = place[key]
    place[at[-1]] = value
    torch.save(stranger, tmp_path / "x.ckpt")
    with cheap(), pytest.raises(UserError) as error:
        evaluate(
            config(
                f"ckpt_path={tmp_path}/x.ckpt",
                "data.num_workers=0" if "loader" not in what else "seed=0",
                name="eval",
            )
        )
    assert len(str(error.value)) < 500
    happened(f"A checkpoint with {what}", error.value)


@pytest.mark.fault("Strangers' files")
def test_deeply_nested_metadata_is_refused(
    stranger: dict[str, Any], config: Config, tmp_path: Path, happened: Happened
) -> None:
    nested: list[Any] = []
    for _ in range(200):
        nested = [nested]
    stranger[KEY]["config"]["deep"] = nested
    torch.save(stranger, tmp_path / "x.ckpt")
    with cheap(), pytest.raises(UserError, match="nested more than 64 deep") as error:
        evaluate(config(f"ckpt_path={tmp_path}/x.ckpt", name="eval"))
    happened("A checkpoint with 200 lists in each other", error.value)


@pytest.mark.fault("Strangers' files")
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(1).expand(10**6, 10**4), "too few elements"),
        (torch.zeros(2, 2).to_sparse(), "sparse, quantized or without values"),
        (torch.zeros(4, device="meta"), "without values"),
    ],
    ids=["10 billion numbers of one", "sparse", "meta"],
)
def test_tensors_that_claim_more_than_the_file_are_refused(
    value: Any,
    words: str,
    stranger: dict[str, Any],
    videos: Path,
    config: Config,
    tmp_path: Path,
    happened: Happened,
) -> None:
    stranger["state_dict"]["net.head.bias"] = value
    torch.save(stranger, tmp_path / "x.ckpt")
    with cheap(), pytest.raises(UserError, match=words) as error:
        evaluate(config(f"ckpt_path={tmp_path}/x.ckpt", name="eval"))
    with cheap(), pytest.raises(UserError, match=words):
        train(config("data=folder", f"data.root={videos}", f"init.path={tmp_path}/x.ckpt"))
    happened("A tensor that is larger than its file, or not dense", error.value)


@pytest.mark.fault("Numbers")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(
    bad: float, stranger: dict[str, Any], config: Config, videos: Path, tmp_path: Path, happened: Happened
) -> None:
    path = tmp_path / "x.ckpt"
    stranger["state_dict"]["net.head.bias"][0] = bad
    torch.save(stranger, path)
    with pytest.raises(UserError, match=r"'head\.bias' are not finite") as error:
        evaluate(config(f"ckpt_path={path}", name="eval"))
    folder = ("data=folder", f"data.root={videos}")
    with pytest.raises(UserError, match=r"'head\.bias' are not finite"):
        train(config(*folder, f"init.path={path}"))
    with pytest.raises(UserError, match=r"'head\.bias' are not finite"):
        train(config(*folder, f"ckpt_path={path}"))
    happened(f"A weight that is {bad} in a checkpoint that is scored, resumed or started from", error.value)


CONFIGS: list[dict[str, Any]] = [
    {"num_hidden_layers": 10**9},
    {"num_hidden_layers": "${oc.env:VIVIT_SECRET}"},
    {"num_hidden_layers": None},
    {"tubelet_size": [0, 0, 0]},
    {"tubelet_size": 10**9},
    {"hidden_size": 10**9},
    {"intermediate_size": 10**9},
    {"num_frames": 10**9},
    {"image_size": 10**9},
    {"image_size": [[[1]]]},
    {"num_attention_heads": 0},
    {"layer_norm_eps": float("nan")},
    {"id2label": {"x": "a"}},
    {"id2label": [1, 2]},
    {"id2label": {"0": "a", "1": "a"}},
    {"layer_norm_eps": 10**400},
    {"num_hidden_layers": 10**400},
]


@pytest.mark.fault("Strangers' files")
@pytest.mark.parametrize(
    "change", CONFIGS, ids=[f"{key}={value}"[:60] for c in CONFIGS for key, value in c.items()]
)
def test_absurd_hugging_face_folders_are_refused(
    change: dict[str, Any], tmp_path: Path, happened: Happened
) -> None:
    from vivit_train.models.vivit import ViViT

    sizes = {"frames": 4, "image_size": 32, "dim": 16, "depth": 1, "heads": 2}
    net = ViViT("vivit_st", num_classes=2, **sizes)  # type: ignore[arg-type]
    save_huggingface(net, tmp_path, classes=["a", "b"], mean=[0.5] * 3, std=[0.5] * 3, short_side=32)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with cheap(), pytest.raises(UserError) as error:
        load_pretrained(ViViT("vivit_st", num_classes=2, **sizes), str(tmp_path))  # type: ignore[arg-type]
    happened(f"A Hugging Face folder with {change}"[:100], error.value)


def test_a_hugging_face_normalization_with_absurd_numbers_is_refused(tmp_path: Path) -> None:
    from vivit_train.models.vivit import ViViT

    net = ViViT("vivit_st", num_classes=2, frames=4, image_size=32, dim=16, depth=1, heads=2)
    save_huggingface(net, tmp_path, classes=["a", "b"], mean=[0.5] * 3, std=[0.5] * 3, short_side=32)
    for change in ({"rescale_factor": 10**400}, {"image_mean": [10**400] * 3}):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(change))
        with pytest.raises(UserError, match=r"preprocessor_config\.json: (rescale_factor is|the mean of)"):
            load_pretrained(net, str(tmp_path))


def test_hugging_face_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    from vivit_train.models.vivit import ViViT

    net = ViViT("vivit_st", num_classes=2, frames=4, image_size=32, dim=16, depth=1, heads=2)
    torch.nn.init.constant_(net.encoder.norm.weight, float("nan"))
    save_huggingface(net, tmp_path, classes=["a", "b"], mean=[0.5] * 3, std=[0.5] * 3, short_side=32)
    with pytest.raises(UserError, match="not finite"):
        load_huggingface(tmp_path)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(UserError, match=r"net\.safetensors: the weights 'encoder\.norm\.weight' are not finite"):
        load_pretrained(net, str(tmp_path / "net.safetensors"))


@pytest.mark.fault("Strangers' files")
def test_a_checkpoint_that_is_resumed_names_no_file_to_delete_or_score(
    videos: Path, config: Config, tmp_path: Path, happened: Happened
) -> None:
    folder = ("data=folder", f"data.root={videos}")
    train(config(*folder))
    last, precious = tmp_path / "run/checkpoints/last.ckpt", tmp_path / "precious.ckpt"
    precious.write_text("of somebody else")
    content = torch.load(last, weights_only=True)
    (key,) = (key for key in content["callbacks"] if key.startswith("ModelCheckpoint"))
    for path in (str(precious), f"{last.parent}/../../precious.ckpt", "memory://x/best.ckpt"):
        state = {"best_model_path": path, "kth_best_model_path": path, "best_k_models": {path: torch.tensor(-1.0)}}
        content["callbacks"][key] |= state | {"kth_value": torch.tensor(-1.0)}
        torch.save(content, tmp_path / "x.ckpt")
        train(config(*folder, f"ckpt_path={tmp_path}/x.ckpt", "trainer.max_epochs=2", "overwrite=true"))
        assert precious.read_text() == "of somebody else"
        scored = Path(json.loads((tmp_path / "run/metrics.json").read_text())["checkpoint"])
        assert scored.parent == last.parent
    happened("A checkpoint that names another file as the best one, and is resumed", f"{scored} is scored")


@pytest.mark.fault("Strangers' files")
def test_a_checkpoint_without_the_state_of_a_run_is_not_resumed(
    stranger: dict[str, Any], videos: Path, config: Config, tmp_path: Path, happened: Happened
) -> None:
    path = tmp_path / "x.ckpt"
    for loops in (None, {}, {"fit_loop": 3}):
        torch.save(stranger | {"loops": loops, "pytorch-lightning_version": "2.6.6"}, path)
        with pytest.raises(UserError, match=r"cannot be resumed .*init\.path=") as error:
            train(config("data=folder", f"data.root={videos}", f"ckpt_path={path}"))
    happened("A checkpoint without the state of a training run, and ckpt_path=FILE in training", error.value)


@pytest.mark.fault("Strangers' files")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer.lr", "${oc.env:VIVIT_SECRET}"),
        ("model._target_", "os.system"),
        ("optimizer.lr", 1e9),
    ],
)
def test_a_search_s_file_is_no_command_line(name: str, value: Any, tmp_path: Path, happened: Happened) -> None:
    optuna = pytest.importorskip("optuna", minversion="4.2", reason="needs the extra `optuna`")
    from vivit_train.tools.optuna_sweeper import Search

    study = open_study(str(tmp_path / "journal"))
    if isinstance(value, str):
        span: Any = optuna.distributions.CategoricalDistribution([value])
    else:
        span = optuna.distributions.FloatDistribution(value, value)
    study.ask({name: span})
    params = OmegaConf.create({"optimizer.lr": "interval(0.0001, 0.01)"}, flags={"struct": False})
    sampler = OmegaConf.create({"_target_": "optuna.samplers.RandomSampler"})
    searching: Any = Search(
        str(tmp_path / "journal"), n_trials=2, n_jobs=1, params=params, seed=0, sampler=sampler
    )
    with pytest.raises(UserError, match="which is not in the search space") as error:
        searching.sweep([])
    happened(f"A search's file whose open trial says {name} = {value}", error.value)


@pytest.mark.fault("Strangers' files")
def test_a_search_s_file_that_holds_something_else_is_one_message(tmp_path: Path, happened: Happened) -> None:
    pytest.importorskip("optuna", minversion="4.2", reason="needs the extra `optuna`")
    for text in ('{"op_code": 99}\n', "[[[[\n" * 3, '{"op_code": 0}\n', '"x"\n{}\n'):
        (tmp_path / "journal").write_text(text)
        with pytest.raises(UserError, match="is damaged or not a search of vivit-train") as error:
            open_study(str(tmp_path / "journal"))
    happened("A search's file that holds something else", error.value)


@pytest.mark.fault("Strangers' files")
def test_a_saved_step_of_other_forms_is_one_message(
    stranger: dict[str, Any], tmp_path: Path, happened: Happened
) -> None:
    batch = {"video": torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8), "label": torch.tensor([[99]]), "seed": 0}
    batch |= {"paths": ["x"], "frame_numbers": torch.zeros(1, 4), "times_s": torch.zeros(1, 4), "loss": "x"}
    step: Any = {"step": 1, "epoch": 1, "rank": 0, "processes": 1, "precision": "32", "device": "cpu"}
    step |= {"gradient_norm": 1.0, "micro_batches": [batch]}
    for odd in (3, [], step, step | {"micro_batches": 3}, step | {"gradient_norm": "x"}, step | {"rank": None}):
        torch.save(stranger | {"replay": odd}, tmp_path / "x.pt")
        with pytest.raises(UserError) as error:
            CliRunner().invoke(app, ["replay", str(tmp_path / "x.pt")], catch_exceptions=False)
        happened(f"A saved step that is {str(odd)[:40] if odd != step else 'of other forms'}", error.value)


def test_what_is_stored_names_nothing_by_its_module(videos: Path, config: Config, tmp_path: Path) -> None:
    train(config("data=folder", f"data.root={videos}"))
    settings = load_checkpoint(tmp_path / "run/checkpoints/best.ckpt")[0].config
    assert settings["model"]["_target_"] == "vivit_of_size"
    assert (settings["data"]["_target_"], settings["data"]["reader"]["_target_"]) == ("videos", "folder")
