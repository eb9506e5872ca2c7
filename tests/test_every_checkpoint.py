"""Every command works from every kind of checkpoint that ours write, or says in one message what to do instead."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint
from test_push import REPO, hub  # noqa: F401  the stand-in for the Hub, a fixture
from typer.testing import CliRunner

import vivit_train
from vivit_train.data.synthetic import CLASSES
from vivit_train.tools.cli import app
from vivit_train.tools.compare import compare
from vivit_train.utils.errors import UserError

PROBE = {"_target_": "frame_probe", "model": "vivit_fe", "size": "Ti", "depth": 2, "tubelet": [1, 16, 16]}
MOVED = {"input": "foreground", "space": "grid", "time": "ordered", "layers": 2}
ODD = {"pre_norm": True, "reg_tokens": 2, "rope": True}
EPIC = {"verb": ["take", "put"], "noun": ["cup", "door"]}
KINDS: dict[str, dict[str, Any]] = {
    "vivit_st": {},
    "vivit_fe": {"model": {"model": "vivit_fe"}},
    "vivit_fsa": {"model": {"model": "vivit_fsa"}},
    "vivit_fdp": {"model": {"model": "vivit_fdp"}},
    "probe": {"model": PROBE | {"motion": "map"}},  # of `vivit probe`
    "probe_st": {"model": PROBE | {"model": "vivit_st", "tubelet": [2, 16, 16], "input": "foreground"}},
    "few_clips": {"model": PROBE | {"layers": 1, "time": "differences", "more_poolings": [MOVED]}},
    "motion_probe": {"model": PROBE | {"space": "none", "time": "mean", "motion": "map"}},
    "lora": {"model": {"model": "vivit_fe"}, "tuning": "lora"},
    "adapter": {"tuning": "adapter"},
    "adapter_fsa": {"model": {"model": "vivit_fsa"}, "tuning": "adapter"},
    "rope": {"model": ODD},
    "sincos": {"model": {"pos_embed": "sincos", "pool": "mean", "fc_norm": True, "act": "quick_gelu"}},
    "sampled": {"model": {"sampled_frames": 2, "tubelet": [1, 16, 16]}},
    "multi_label": {"multi_label": True},
    "epic": {"classes": EPIC, "model": {"model": "vivit_fe"}},
}
ONE_FOR_ALL = ("safetensors", "onnx", "torch-export")
# what the others hold
HOLDS = {"huggingface": {"vivit_st", "multi_label"}, "scenic": {"vivit_st", "vivit_fe", "vivit_fsa", "vivit_fdp"}}
HOLDS["scenic"] |= {"lora", "multi_label", "sampled", "epic"}
OTHERS = "choose another --format; every model can be onnx, torch-export, safetensors"


def made(folder: Path, kind: str) -> Path:
    return checkpoint(folder / "best.ckpt", **{"classes": {"": list(CLASSES)}} | KINDS[kind])


def vivit(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == code, (words, done.output, done.exception)
    return done.output


def same_logits(one: Path | str, other: Path | str) -> None:
    models = [vivit_train.load(source, device="cpu") for source in (one, other)]
    clips = torch.randint(256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(*(model.logits(clips) for model in models), atol=1e-5, rtol=1e-4)
    assert models[0].classes == models[1].classes


@pytest.mark.parametrize("kind", ["probe", "adapter", "rope"])
def test_an_exported_folder_is_loaded_as_the_checkpoint(kind: str, tmp_path: Path) -> None:
    ckpt = made(tmp_path, kind)
    vivit("export", ckpt, "--format", "safetensors", "--out", tmp_path / "out")
    same_logits(ckpt, tmp_path / "out")
    assert OTHERS in vivit("export", ckpt, "--format", "scenic", "--out", tmp_path / "jax", code=2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_command(
    kind: str,
    hub: Any,  # noqa: F811
    videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ckpt, few = made(tmp_path, kind), sorted(videos.glob("test/*/*.mp4"))[:3]
    vivit("predict", ckpt, *few, "--workers", 0, "--json", "a.json", "--csv", "a.csv", "--fiftyone", "b.json")
    vivit("predict", ckpt, few[0], "--timeline")
    vivit("explain", ckpt, few[0], "--out", "gradient", code=2 * (kind == "motion_probe"))
    is_probe = KINDS[kind].get("model", {}).get("_target_") == "frame_probe"
    said = vivit("explain", ckpt, few[0], "--method", "rollout", "--out", "rollout", code=2 * is_probe)
    assert not is_probe or "sees only motion" in said or "use --method gradient" in said
    for level in ("clip", "frame", "token"):
        vivit("features", ckpt, *few, "--level", level, "--out", f"{level}.safetensors")
    vivit("search", "clip.safetensors", few[0])
    vivit("push", ckpt, REPO)
    same_logits(ckpt, REPO)
    for format in (*ONE_FOR_ALL, *HOLDS):
        if format == "onnx":
            pytest.importorskip("onnxruntime")
        holds = format in ONE_FOR_ALL or kind in HOLDS[format]
        said = vivit("export", ckpt, "--format", format, "--out", format, code=0 if holds else 2)
        assert holds or OTHERS in said
        if holds and format in ("safetensors", "huggingface"):
            same_logits(ckpt, format)
    vivit("predict", "safetensors", few[0], "--workers", 0)
    if kind not in ("epic", "multi_label"):  # whose labels these videos lack
        for views in ("1x1", "2x1"):
            words = (f"ckpt_path={ckpt}", "data=folder", f"data.root={videos}", f"eval.views={views}")
            vivit_train.evaluate(*words, run_dir=tmp_path / views)
        with pytest.raises(UserError, match="views is 1x1 and 2x1"):
            compare([Path("1x1"), Path("2x1")], Path("compare.html"))
        vivit("compare", "1x1", "1x1")
