"""How far our numbers are from the reference's, for the tests and for docs/fidelity.md."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import lightning as L
import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from vivit_train.data.colors import adjust_colors
from vivit_train.data.randaugment import OPERATIONS
from vivit_train.data.transforms import crop_views, resize_clip
from vivit_train.data.video.resize import Resize
from vivit_train.models.vivit import ModelName, ViViT
from vivit_train.models.weights.huggingface import load_huggingface, save_huggingface
from vivit_train.models.weights.scenic import load_scenic, to_scenic
from vivit_train.models.weights.timm_models import read_weights
from vivit_train.models.weights.timm_vit import init_from_vit
from vivit_train.training.losses import CrossEntropy
from vivit_train.training.module import VideoClassifier
from vivit_train.training.optim import warmup_cosine

GOLDENS = Path(__file__).parent / "goldens"  # outputs of the reference code on tiny random models
MODELS: dict[str, ModelName] = {
    "spacetime": "vivit_st",
    "factorized_encoder": "vivit_fe",
    "factorized_self_attention": "vivit_fsa",
    "factorized_dot_product": "vivit_fdp",
}
INITS: dict[str, tuple[ModelName, Literal["central_frame", "inflation"]]] = {
    "init_spacetime": ("vivit_st", "central_frame"),
    "init_spacetime_average_resize_tile": ("vivit_st", "inflation"),
    "init_factorized_encoder": ("vivit_fe", "central_frame"),
    "init_factorized_self_attention": ("vivit_fsa", "central_frame"),
    "init_factorized_dot_product": ("vivit_fdp", "central_frame"),
}
# model, size, other arguments, and the paper's million parameters and giga multiply-adds (32x224x224, 16x2)
PAPER: list[tuple[ModelName, str, dict[str, Any], float, float]] = [
    ("vivit_st", "B", {}, 88.95, 455.2),
    ("vivit_fe", "B", {}, 115.06, 284.4),
    ("vivit_fsa", "B", {}, 117.32, 372.3),
    ("vivit_fdp", "B", {}, 88.95, 277.1),
    ("vivit_fe", "B", {"temporal_depth": 0}, 86.70, 283.9),
    ("vivit_fe", "L", {"num_classes": 397}, 354.90, 990.9),
    ("vivit_st", "L", {}, 307.51, 1445.8),
]
HALF = [0.5] * 3
Tree = dict[str, np.ndarray[Any, Any]]


def scenic(case: str) -> tuple[Tree, dict[str, Any], dict[str, Any]]:
    """The arrays of a golden of the authors' code, its configuration, and what `load_scenic` must be told."""
    config = json.loads((GOLDENS / "scenic" / case / "config.json").read_text())
    with np.load(GOLDENS / "scenic" / case / "golden.npz") as file:
        arrays = {name: file[name] for name in file.files}
    settings = {
        "model": INITS[case][0] if case in INITS else MODELS[case.removeprefix("trainstep_")],
        "frames": config.get("input_shape", [0, 6])[1],
        "image_size": tuple(config.get("input_shape", [0, 6, 12, 12])[2:4]),
        "pool": {"token": "cls", "gap": "mean"}[config["model"]["classifier"]],
        "order": config["model"]["attention_config"].get("attention_order", "space_time"),
    }
    return arrays, config, settings


def part(arrays: Tree, prefix: str) -> Tree:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


class Log(L.Callback):
    """What the task logged in each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        names = {"train/loss_step": "loss", "train/grad_norm": "grad_norm", "train/lr": "lr"}
        self.steps.append({short: float(trainer.callback_metrics[name]) for name, short in names.items()})


def trainstep_errors(case: str, precision: Any) -> dict[str, float]:
    """The largest difference of loss, gradient norm and learning rate over the authors' four steps, and of the
    parameters after them; all through our LightningModule, optimizer and Lightning's Trainer.

    Raises:
        AssertionError: the steps left a parameter where it was.
    """
    arrays, config, settings = scenic(case)
    dtype = torch.float64 if precision == "64-true" else torch.float32
    schedule, classes = config["lr"]["lr_configs"], config["num_classes"]
    start, end = (load_scenic(part(arrays, at), **settings) for at in ("params0/", "params_end/"))
    before = {name: value.clone() for name, value in start.state_dict().items()}
    task = VideoClassifier(
        start,
        {"": [str(i) for i in range(classes)]},
        HALF,
        HALF,
        optimizer=lambda groups: torch.optim.SGD(
            groups, lr=schedule["base_learning_rate"], momentum=config["momentum"]
        ),
        schedule=warmup_cosine(schedule["warmup_steps"], schedule["steps_per_cycle"]),
        loss=CrossEntropy(config["label_smoothing"]),
    )
    batches: Any = []
    for step in range(4):
        share = float(arrays[f"step{step}/lambda"])
        video = torch.from_numpy(arrays[f"step{step}/video"]).to(dtype).permute(0, 1, 4, 2, 3)
        label = F.one_hot(torch.from_numpy(arrays[f"step{step}/label"]), classes).to(dtype)
        mixed, target = (share * x + (1 - share) * x.flip(0) for x in (video, label))  # their pairing
        batches.append({"video": (mixed + 1) * 127.5, "label": target})
    log = Log()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        precision=precision,
        max_epochs=1,
        gradient_clip_val=config["clip"],
        callbacks=[log],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(task, DataLoader(batches, batch_size=None))

    errors = {
        name: max(abs(step[name] - float(arrays[f"step{i}/{name}"])) for i, step in enumerate(log.steps))
        for name in ("loss", "grad_norm", "lr")
    }
    expected = end.state_dict()
    assert all((before[name] - value).abs().max() > 1e-3 for name, value in expected.items())
    errors["parameters"] = max(largest(task.net.state_dict()[name], value) for name, value in expected.items())
    return errors


def cost(model: ModelName, size: str, kwargs: dict[str, Any]) -> tuple[float, float, float]:
    """Million parameters, and giga multiply-adds of matrix products for one 32x224x224 view: those that are
    computed, and with those that the paper counts too."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net = ViViT.from_size(model, size, **{"num_classes": 400} | kwargs).eval()
        net(torch.empty(1, 3, 32, 224, 224))
    computed = counter.get_total_flops() / 2
    return sum(p.numel() for p in net.parameters()) / 1e6, computed / 1e9, (computed + unread(net)) / 1e9


def unread(net: ViViT) -> int:
    """Multiply-adds that each encoder's last block would take for the tokens that nobody reads after it: all but
    the cls token."""
    total, encoders = 0, [(net.grid[0] if net.model == "vivit_fe" else 1, net.encoder)]
    if net.temporal_encoder is not None:
        encoders.append((1, net.temporal_encoder))
    for sequences, encoder in encoders:
        if encoder.cls_token is not None:
            (tokens,), hidden, dim = encoder.grid, *encoder.blocks[-1].mlp.fc1.weight.shape
            # each: scores and their sum of values, the output's product, the MLP
            total += sequences * (tokens - 1) * (2 * tokens * dim + dim**2 + 2 * dim * hidden)
    return total


def forward_error(case: str, dtype: torch.dtype, eager: bool = False) -> float:
    """Of the logits, against the authors' in float64."""
    arrays, _, settings = scenic(case)
    net = load_scenic(part(arrays, "params/"), **settings).eval().to(dtype).use_eager_attention(eager)
    with torch.no_grad():
        logits = net(torch.from_numpy(arrays["input/video"]).permute(0, 4, 1, 2, 3).to(dtype))
    assert isinstance(logits, Tensor)
    return largest(logits, torch.from_numpy(arrays["output/logits_f64"]))


def huggingface_error(dtype: torch.dtype, eager: bool = False) -> float:
    """Of the logits, against Hugging Face's in float64."""
    net = load_huggingface(GOLDENS / "huggingface").eval().to(dtype).use_eager_attention(eager)
    with np.load(GOLDENS / "huggingface" / "io.npz") as file, torch.no_grad():
        logits = net(torch.from_numpy(file["pixel_values"]).transpose(1, 2).to(dtype))
        assert isinstance(logits, Tensor)
        return largest(logits, torch.from_numpy(file["logits_fp64"]))


def init_error(case: str) -> float:
    """Of all parameters after loading an image ViT, against the authors' loader where we do as it does."""
    model, tubelet = INITS[case]
    arrays, _, settings = scenic(case)
    src, before, after = (part(arrays, at) for at in ("src/", "before/", "after/"))
    net, untouched = load_scenic(before, **settings), load_scenic(before, **settings).state_dict()
    expected = load_scenic(after, **settings).state_dict()
    init_from_vit(net, timm_layout(src), tubelet=tubelet)

    errors = []
    for name, value in net.named_parameters():
        if name.startswith("head."):
            want = torch.zeros_like(value)
        elif model == "vivit_fe" and name == "encoder.cls_token":
            want = torch.from_numpy(src["cls"])  # their loader forgets it
        elif "attention_time.out" in name:
            want = torch.zeros_like(value)  # a no-op at first; they copy the spatial attention, or zero all of it
        elif "attention_time" in name:
            want = untouched[name]
        else:
            want = expected[name]
        errors.append(largest(value, want))
    return max(errors)


def scenic_round_trip(case: str) -> float:
    """Of all parameters, from the authors' tree to our model and back to a tree."""
    arrays, _, settings = scenic(case)
    tree = part(arrays, "params/")
    again = to_scenic(load_scenic(tree, **settings))
    assert set(again) == set(tree)
    return max(float(np.abs(again[path] - value).max()) for path, value in tree.items())


def huggingface_round_trip() -> float:
    """Of all parameters, from Hugging Face's folder to our model, to a folder and back."""
    net = load_huggingface(GOLDENS / "huggingface")
    with TemporaryDirectory() as folder:
        save_huggingface(net, folder, classes=list("abcdefghij"), mean=HALF, std=HALF, short_side=36)
        again = load_huggingface(folder).state_dict()
    return max(largest(value, again[name]) for name, value in net.state_dict().items())


def processor_error(shared: Path) -> int:
    """Of uint8 pixels after resizing and cropping, against Hugging Face's image processor, over five videos."""
    with np.load(shared / "goldens/huggingface/processor.npz") as file:
        arrays = {name: file[name] for name in file.files}
    names = {name.split("/")[0] for name in arrays}
    assert len(names) == 5
    errors = []
    for name in names:
        video_TCHW = torch.from_numpy(arrays[f"{name}/input"]).permute(0, 3, 1, 2)
        (view,) = crop_views(video_TCHW, 224, short_side=256, resize_mode="keep_ratio", crops=1)
        theirs = torch.from_numpy(arrays[f"{name}/resized256_crop224_uint8"])[0]
        errors.append(int((view.int() - theirs.int()).abs().max()))
        served = torch.from_numpy(arrays[f"{name}/zero_center"])[0]
        assert largest((theirs.float() - 127.5) / 127.5, served) < 1e-6, name  # our normalization is theirs
    return max(errors)


def tensorflow() -> Tree:
    """What TensorFlow's ops make of two frames of a real video; goldens/tensorflow/make.py wrote it."""
    with np.load(GOLDENS / "tensorflow" / "colors.npz") as file:
        return {name: file[name] for name in file.files}


def color_errors() -> dict[str, tuple[float, float]]:
    """The largest difference of each color operation from TensorFlow's, of 255, and the share of values that
    differ."""
    arrays = tensorflow()
    clip_TCHW, errors = torch.from_numpy(arrays["clip"]).permute(0, 3, 1, 2), {}
    for name, theirs in arrays.items():
        operation, _, magnitude = name.partition("/")
        if operation in OPERATIONS:
            ours = OPERATIONS[operation](clip_TCHW, int(magnitude) / 10)
        elif operation.startswith("jitter") and not magnitude:
            ours = adjust_colors(clip_TCHW, tuple(arrays[f"{name}/amounts"].tolist()))
        elif operation == "gray":
            ours = adjust_colors(clip_TCHW, None, gray=True)
            theirs = theirs[..., None].repeat(3, -1)
        else:
            continue
        error = (ours.permute(0, 2, 3, 1).float() - torch.from_numpy(theirs.astype(np.float32))).abs()
        errors[name] = error.max().item(), (error > 0).float().mean().item()
    return errors


def resize_errors(resize: Resize) -> dict[str, tuple[float, float]]:
    """The largest and the mean difference of our resize from TensorFlow's bilinear one, of 255, by new size."""
    arrays = tensorflow()
    frame_1CHW = torch.from_numpy(arrays["clip"][:1]).permute(0, 3, 1, 2)
    errors = {}
    for name in (name for name in arrays if name.startswith("resized/")):
        size = [int(side) for side in name.partition("/")[2].split("x")]
        ours = resize_clip(frame_1CHW, *size, resize).permute(0, 2, 3, 1)
        error = (ours.float() - torch.from_numpy(arrays[name]).float()).abs()
        errors[name.partition("/")[2]] = error.max().item(), error.mean().item()
    return errors


def deit_error(shared: Path) -> float:
    """Of the spatial encoder's cls for each tubelet, against the real DeiT-Ti's features of its central frame."""
    weights = str(shared / "weights/deit_tiny_patch16_224.fp16.safetensors")
    net = ViViT.from_size("vivit_fe", "Ti", num_classes=5, frames=4).eval()
    init_from_vit(net, weights)
    vit = timm.create_model("deit_tiny_patch16_224", pretrained=False, act_layer="gelu_tanh").eval()
    vit.load_state_dict(read_weights(weights))
    return cls_error(net, vit)


def cls_error(net: ViViT, vit: nn.Module) -> float:
    video = torch.rand(2, *net.input_shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    t = net.tubelet[0]
    with torch.no_grad():
        cls_BtD = net.encoder(net.embedding(video))
        features = [vit.forward_features(video[:, :, i * t + t // 2])[:, 0] for i in range(net.grid[0])]  # type: ignore[operator]
    return largest(cls_BtD, torch.stack(features, dim=1))


def timm_layout(flax: Tree) -> dict[str, Tensor]:
    """The authors' image ViT in timm's keys and layout."""
    x = {path: torch.from_numpy(value.copy()) for path, value in flax.items()}
    state = {
        "cls_token": x["cls"],
        "pos_embed": x["Transformer/posembed_input/pos_embedding"],
        "patch_embed.proj.weight": x["embedding/kernel"].permute(3, 2, 0, 1),
        "patch_embed.proj.bias": x["embedding/bias"],
        "norm.weight": x["Transformer/encoder_norm/scale"],
        "norm.bias": x["Transformer/encoder_norm/bias"],
        "head.weight": x["output_projection/kernel"].T,
        "head.bias": x["output_projection/bias"],
    }
    for i in range(sum(path.endswith("LayerNorm_0/scale") for path in x)):
        theirs, ours = f"Transformer/encoderblock_{i}", f"blocks.{i}"
        attention = f"{theirs}/MultiHeadDotProductAttention_0"
        qkv = [f"{attention}/{which}" for which in ("query", "key", "value")]
        state[f"{ours}.attn.qkv.weight"] = torch.cat([x[f"{path}/kernel"].flatten(1).T for path in qkv])
        state[f"{ours}.attn.qkv.bias"] = torch.cat([x[f"{path}/bias"].flatten() for path in qkv])
        state[f"{ours}.attn.proj.weight"] = x[f"{attention}/out/kernel"].flatten(0, 1).T
        state[f"{ours}.attn.proj.bias"] = x[f"{attention}/out/bias"]
        for n in (0, 1):
            state[f"{ours}.norm{n + 1}.weight"] = x[f"{theirs}/LayerNorm_{n}/scale"]
            state[f"{ours}.norm{n + 1}.bias"] = x[f"{theirs}/LayerNorm_{n}/bias"]
            state[f"{ours}.mlp.fc{n + 1}.weight"] = x[f"{theirs}/MlpBlock_0/Dense_{n}/kernel"].T
            state[f"{ours}.mlp.fc{n + 1}.bias"] = x[f"{theirs}/MlpBlock_0/Dense_{n}/bias"]
    return state


def largest(ours: Tensor, theirs: Tensor) -> float:
    """The largest absolute difference."""
    return (ours.detach().double() - theirs.double()).abs().max().item()
