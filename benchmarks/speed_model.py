"""Measures the model beside Hugging Face's, and its parts beside what they could be instead: docs/benchmarks.md.

make bench-model, or: python benchmarks/speed_model.py [peers] [ratio] [parts] [--sizes Ti,S,B] [--rounds 5] ...

What is compared takes turns in one process, with the same weights and clips; of the ratios of the rounds the
median counts. "peak": all products of our step, those that attention's backward pass repeats included, as fast
as one large product of matrices runs in the same rounds; nothing in that precision can be faster.
Timings fail nothing; a bar that is missed stands in bold.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vivit_train.models.attention import fused_attention
from vivit_train.models.vivit import SIZES, ViViT
from vivit_train.models.weights.huggingface import load_huggingface
from vivit_train.tools.bench.model import DTYPES, device_name, finish, in_precision, infer, plain_sgd, train
from vivit_train.training.optim import parameter_groups
from vivit_train.training.profiling import bytes_kept, half_precision_speedup, matmul_peak

CLASSES = 400
PRODUCT = 2048  # rows and columns of the matrices by whose product the machine's peak is known
SPEED_BAR, MEMORY_BAR, LOGITS_BAR, RATIO_BAR = 1.25, 0.55, 1e-5, 1.5
Step = Callable[[], object]


def turns(steps: dict[str, Step], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds by round, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name in steps if turn % 2 else reversed(steps):
            finish(device)
            start_s = time.perf_counter()
            steps[name]()
            finish(device)
            if turn:
                seconds[name].append(time.perf_counter() - start_s)
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


def shown(value: float, bar: float, at_least: bool = True) -> str:
    return f"{value:.2f}" if (value >= bar) == at_least else f"**{value:.2f}**"


# Beside Hugging Face's.


def theirs_and_ours(size: str, frames: int, crop: int, device: torch.device) -> tuple[nn.Module, ViViT]:
    """The same weights, of which none is zero."""
    from transformers import VivitConfig, VivitForVideoClassification

    dim, depth, heads = (SIZES[size][name] for name in ("dim", "depth", "heads"))
    config = VivitConfig(
        image_size=crop,
        num_frames=frames,
        tubelet_size=[2, 16, 16],
        hidden_size=dim,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * dim,
        num_labels=CLASSES,
    )
    torch.manual_seed(0)
    model = VivitForVideoClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        theirs = VivitForVideoClassification.from_pretrained(folder, attn_implementation="sdpa")
        return theirs.to(device), load_huggingface(folder).to(device)


def step_of(
    mode: str, net: nn.Module, forward: Callable[[Tensor], Any], video: Tensor, dtype: torch.dtype
) -> Step:
    return (
        partial(train, forward, plain_sgd(net), video, dtype)
        if mode == "train"
        else partial(infer, forward, video, dtype)
    )


def peers(options: argparse.Namespace, device: torch.device) -> None:
    print(
        "| vivit_st | frames, crop, clips | | precision | Hugging Face, clips/s | ours / theirs (bar 1.25) | "
        "compiled / theirs | peak / theirs | bytes kept (bar 0.55) | logits differ by |",
        "|---" * 10 + "|",
        sep="\n",
        flush=True,
    )
    for size in options.sizes.split(","):
        theirs, ours = theirs_and_ours(size, options.frames, options.crop, device)
        shape = (options.clips, *ours.input_shape)
        video = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1

        def their_logits(video: Tensor, theirs: nn.Module = theirs) -> Any:
            return theirs(video.transpose(1, 2)).logits

        with torch.inference_mode():
            differ = float((their_logits(video) - ours(video)).abs().max())
        compiled = torch.compile(ours, fullgraph=True, dynamic=True) if options.compiled else None
        for mode in options.mode.split(","):
            theirs.train(mode == "train")
            ours.train(mode == "train")
            for precision in options.dtype.split(","):
                dtype = DTYPES[precision]
                forwards = {"theirs": (theirs, their_logits), "ours": (ours, ours)}
                if compiled is not None:
                    forwards["compiled"] = (ours, compiled)
                steps = {name: step_of(mode, *both, video, dtype) for name, both in forwards.items()}
                with FlopCounterMode(display=False) as counter:
                    steps["ours"]()
                product = torch.rand(PRODUCT, PRODUCT, device=device).to(dtype)
                steps["product"] = partial(F.linear, product, product)
                seconds = turns(steps, options.rounds, device)
                kept = ""
                if mode == "train":

                    def keeps(net: nn.Module, forward: Callable[[Tensor], Any], dtype: torch.dtype = dtype) -> int:
                        with in_precision(dtype, device):
                            return bytes_kept(net, lambda: forward(video))  # noqa: B023

                    kept = shown(keeps(ours, ours) / keeps(theirs, their_logits), MEMORY_BAR, at_least=False)
                bar = SPEED_BAR if mode == "train" else 1.0
                theirs_s = statistics.median(seconds["theirs"])
                cells = [size, f"{options.frames}, {options.crop}, {options.clips}", mode, precision]
                cells += [f"{options.clips / theirs_s:.3g}", shown(ratio(seconds, "theirs", "ours"), bar)]
                cells += [
                    f"{ratio(seconds, 'theirs', 'compiled'):.2f}" if compiled is not None else "not measured"
                ]
                products = counter.get_total_flops() / (2 * PRODUCT**3)
                cells += [f"{ratio(seconds, 'theirs', 'product') / products:.2f}", kept]
                cells += [f"{differ:.1e}" if differ <= LOGITS_BAR else f"**{differ:.1e}**"]
                print(f"| {' | '.join(cells)} |", flush=True)


# The factorised encoder beside the joint one.


def factorised(options: argparse.Namespace, device: torch.device) -> None:
    size = options.sizes.split(",")[-1]
    kwargs: dict[str, Any] = {"num_classes": CLASSES, "frames": options.frames, "image_size": options.crop}
    nets = {model: ViViT.from_size(model, size, **kwargs).to(device) for model in ("vivit_st", "vivit_fe")}
    video = torch.rand(options.clips, *nets["vivit_st"].input_shape, device=device)
    for precision in options.dtype.split(","):
        dtype = DTYPES[precision]
        for mode in options.mode.split(","):
            steps = {name: step_of(mode, net, net, video, dtype) for name, net in nets.items()}
            value = ratio(turns(steps, options.rounds, device), "vivit_st", "vivit_fe")
            print(
                f"vivit_fe {size} is {shown(value, RATIO_BAR)} times as fast as vivit_st (bar {RATIO_BAR}): "
                f"{mode}, {precision}, {options.clips} clips of {options.frames} frames of {options.crop}",
                flush=True,
            )


# Parts, each beside what it could be instead.

ATTENTION = {  # sequences, heads, tokens: one clip of ViViT-B, 32x224x224, and of Ti
    "vivit_st: one long sequence": (1, 12, 3137),
    "vivit_st Ti: the same, three heads": (1, 3, 3137),
    "vivit_fe, vivit_fsa: space": (16, 12, 197),
    "vivit_fe: time": (1, 12, 17),
    "vivit_fsa: time": (196, 12, 16),
}


def parts(options: argparse.Namespace, device: torch.device) -> None:
    print("Milliseconds, forward and backward; the median of the rounds.")

    def mathematics(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v)

    for precision in options.dtype.split(","):
        print("", f"| attention, {precision} | ours | torch's kernel | the mathematics |", sep="\n", end="")
        print(" ours / torch's kernel, speed | ours / the mathematics, speed |", "|---" * 6 + "|", sep="\n")
        for name, (sequences, heads, tokens) in ATTENTION.items():
            # as they come out of one product: tokens before heads
            qkv = torch.rand(sequences, tokens, 3, heads, 64, device=device).to(DTYPES[precision])
            qkv = qkv.requires_grad_()

            def step(kernel: Callable[..., Tensor], qkv: Tensor = qkv) -> None:
                kernel(*qkv.permute(2, 0, 3, 1, 4).unbind(0)).sum().backward()

            kernels = {"ours": fused_attention, "torch's": F.scaled_dot_product_attention, "maths": mathematics}
            line(
                name,
                turns({name: partial(step, kernel) for name, kernel in kernels.items()}, options.rounds, device),
            )
    print(
        "",
        "| tubelets of ViViT-B | product | convolution | product / convolution, speed |",
        "|---|---|---|---|",
        sep="\n",
    )
    embedding = ViViT.from_size("vivit_st", "B", num_classes=1).embedding.to(device)
    video = torch.rand(1, 32, 3, 224, 224, device=device).transpose(1, 2)
    tubelets: dict[str, Step] = {
        "product": lambda: embedding(video).sum().backward(),
        "convolution": lambda: embedding.projection(video).flatten(3).permute(0, 2, 3, 1).sum().backward(),
    }
    line("one clip", turns(tubelets, options.rounds, device))
    print(
        "",
        "| optimizer of vivit_fe B | fused | torch's default | fused / default, speed |",
        "|---|---|---|---|",
        sep="\n",
    )
    net = ViViT.from_size("vivit_fe", "B", num_classes=CLASSES).to(device)
    for parameter in net.parameters():
        parameter.grad = torch.rand_like(parameter)
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        extra: dict[str, Any] = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        both = {
            name: kind(parameter_groups(net), lr=1e-4, weight_decay=0.05, fused=fused, **extra).step
            for name, fused in (("fused", True), ("default", None))
        }
        line(kind.__name__, turns(dict(both), options.rounds, device))


def line(name: str, seconds: dict[str, list[float]]) -> None:
    first, *others = seconds
    cells = [f"{1000 * statistics.median(seconds[which]):.3g}" for which in seconds]
    cells += [f"{ratio(seconds, other, first):.2f}" for other in others]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts_of = {"peers": peers, "ratio": factorised, "parts": parts}
    parser.add_argument("what", nargs="*", help=", ".join(parts_of))
    parser.add_argument("--sizes", default="Ti,S,B")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--mode", default="train,infer")
    offered = ["float32"] + ["bf16"] * (half_precision_speedup(torch.bfloat16) >= 1)
    parser.add_argument("--dtype", default=",".join(offered), help="where the processor gains by it, bf16 too")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    import transformers

    peak = matmul_peak(device, torch.float32) / 1e12
    print(
        f"{device_name(device.type)}; torch {torch.__version__}, transformers {transformers.__version__}; "
        f"matrix products in float32: {peak:.3g} TFLOP/s\n"
    )
    for name in options.what or parts_of:
        parts_of[name](options, device)
        print()


if __name__ == "__main__":
    main()
