"""Measure one row of docs/gpu.md in this process and write it as JSON: python benchmarks/gpu_speed.py model ...

All measurements use bf16, clips of 32x224x224 and 400 classes. The option --toy uses toy models on the CPU.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from speed_model import ATTENTION, theirs_and_ours, turns  # noqa: E402

from vivit_train.models.layers import Block  # noqa: E402
from vivit_train.models.vivit import ViViT  # noqa: E402
from vivit_train.tools.bench.model import (  # noqa: E402
    infer,
    plain_sgd,
    train,
)
from vivit_train.training.optim import parameter_groups  # noqa: E402
from vivit_train.training.profiling import (  # noqa: E402
    FORWARD_AND_BACKWARD,
    forward_flops,
    matmul_peak,
    peak_bytes,
    shares,
)

DTYPE = torch.bfloat16
CLASSES = 400
SEARCH_S = 15.0  # The search for the largest batch size stops after this time.
TOY: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 2, "frames": 4, "image_size": 32}
KERNELS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
Json = dict[str, Any]


class Options(argparse.Namespace):
    """The command-line options."""

    what: str
    model: str
    size: str
    mode: str
    compiled: str
    results: Path
    batches_of: str
    work: Path
    json: Path | None
    toy: bool

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() and not self.toy else "cpu")

    @property
    def most_clips(self) -> int:
        return 4 if self.toy else 256

    @property
    def rounds(self) -> int:
        return 2 if self.toy else 5


def build(options: Options, model: str, size: str) -> ViViT:
    torch.manual_seed(0)
    kwargs: Json = {"num_classes": CLASSES} | (TOY if options.toy else {"frames": 32, "image_size": 224})
    if options.toy and options.compiled:
        kwargs |= {"depth": 1, "temporal_depth": 1}  # Compiling a kind of block takes half a minute on a CPU.
    return ViViT.from_size(model, size, **kwargs).to(options.device)  # type: ignore[arg-type]


def clips(net: ViViT, batch: int, device: torch.device) -> Tensor:
    return torch.rand(batch, *net.input_shape, device=device) * 2 - 1


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(step: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    start_s = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - start_s


def fits(step: Callable[[], object], device: torch.device) -> bool:
    """Return whether a step fits in the memory of the device."""
    try:
        step()
        synchronize(device)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "ALLOC_FAILED" not in str(error):
            raise
    else:
        return True
    torch.cuda.empty_cache()  # By now, the error and the tensors that its traceback held are freed.
    return False


def batches_that_fit(step: Callable[[int], object], options: Options) -> tuple[list[int], str]:
    """Return the largest power of two that fits in memory and the two below it, and what ended the search."""
    start_s, found, batch = time.monotonic(), [], 1
    while batch <= options.most_clips:
        if not fits(partial(step, batch), options.device):
            return found[-3:], "memory"
        found.append(batch)
        batch *= 2
        if time.monotonic() - start_s > SEARCH_S:
            return found[-3:], f"time limit of {SEARCH_S:.0f} s"
    return found[-3:], f"maximum of {options.most_clips} clips"


def batches_of(options: Options) -> list[int]:
    """Return the batch sizes of an earlier row, or an empty list if it was not measured."""
    if not options.batches_of or not options.results.exists():
        return []
    rows = [json.loads(line) for line in options.results.read_text(encoding="utf-8").splitlines()]
    found = [row["result"].get("rows", []) for row in rows if row["row"] == options.batches_of]
    return [row["batch"] for row in found[-1]] if found else []


def compile_blocks(net: ViViT) -> None:
    """Compile each block separately. All blocks of an encoder share one graph, so this takes only seconds."""

    def marked(compiled: Callable[..., Tensor], x: Tensor, num_queries: int | None = None) -> Tensor:
        torch._dynamo.maybe_mark_dynamic(x, 0)  # One graph serves any number of clips.
        return compiled(x, num_queries)

    for module in net.modules():
        if isinstance(module, Block):
            module.forward = partial(marked, torch.compile(module.forward, fullgraph=True))  # type: ignore[method-assign]


def model(options: Options) -> Json:
    """Measure the speed, MFU and peak memory of the three largest batch sizes that fit; profile the largest."""
    device = options.device
    net = build(options, options.model, options.size).train(options.mode == "train")
    passes = FORWARD_AND_BACKWARD if options.mode == "train" else 1
    flops, peak = forward_flops(net) * passes, matmul_peak(device, DTYPE)
    if options.compiled == "blocks":
        compile_blocks(net)
    elif options.compiled == "whole":
        net.compile(fullgraph=True, dynamic=True)  # This is what model.compile=true does.
    optimizer, kept = plain_sgd(net), {}

    def step(batch: int) -> None:
        if batch not in kept:
            kept.clear()
            kept[batch] = clips(net, batch, device)
        train(net, optimizer, kept[batch], DTYPE) if options.mode == "train" else infer(net, kept[batch], DTYPE)

    earlier = batches_of(options)
    first = earlier[0] if earlier else 2
    first_s = seconds(partial(step, first), device)
    batches, end = (earlier, "batch sizes of the uncompiled row") if earlier else batches_that_fit(step, options)
    rows: list[Json] = []
    found: Json = {"rows": rows, "search_ended_by": end, "first_step_s": first_s, "matmul_tflops": peak / 1e12}
    for batch in batches:
        if not fits(partial(step, batch), device):
            continue
        steps = 2 if options.toy else max(3, min(10, int(1 / seconds(partial(step, batch), device))))
        step_s = statistics.median(seconds(partial(step, batch), device) for _ in range(steps))
        state = [value for group in optimizer.state.values() for value in group.values() if torch.is_tensor(value)]
        held = [kept[batch], *net.parameters(), *net.buffers(), *state]
        memory = peak_bytes(partial(step, batch), held, device)
        speed = {"batch": batch, "clips_per_s": batch / step_s, "mfu": batch * flops / step_s / peak}
        rows.append({**speed, "step_ms": 1000 * step_s, "peak_gb": memory / 1e9})
        write(options, found)  # Partial results survive if the row is stopped early.
    where, top = shares(partial(step, rows[-1]["batch"]), device)
    return found | {"shares": where, "top": top}


def medians_ms(steps: dict[str, Callable[[], object]], options: Options) -> dict[str, float | str]:
    """Time steps alternately, in milliseconds; for steps that the device cannot run, return the reason."""
    able, refused = {}, {}
    for name, step in steps.items():
        try:
            if fits(step, options.device):
                able[name] = step
            else:
                refused[name] = "out of memory"
        except (RuntimeError, NotImplementedError) as error:
            refused[name] = str(error).splitlines()[0][:100]
    found = turns(able, options.rounds, options.device)
    return {name: 1000 * statistics.median(times) for name, times in found.items()} | refused


def peers(options: Options) -> Json:
    """Compare the model with Hugging Face's ViViT on the same weights and clips."""
    device, size = options.device, "Ti" if options.toy else "B"
    theirs, ours = theirs_and_ours(size, 4 if options.toy else 32, 32 if options.toy else 224, device)

    def their_logits(video: Tensor) -> Any:
        return theirs(video.transpose(1, 2)).logits

    rows = []
    for mode in ("train", "infer"):
        theirs.train(mode == "train")
        ours.train(mode == "train")
        batch = options.most_clips if options.toy else 16
        while batch:
            video = clips(ours, batch, device)
            nets: dict[str, tuple[nn.Module, Callable[[Tensor], Any]]] = {
                "theirs": (theirs, their_logits),
                "ours": (ours, ours),
            }
            steps: dict[str, Callable[[], object]] = {
                name: partial(train, forward, plain_sgd(net), video, DTYPE)
                if mode == "train"
                else partial(infer, forward, video, DTYPE)
                for name, (net, forward) in nets.items()
            }
            if all(fits(step, device) for step in steps.values()):
                break
            batch //= 2
        times = turns(steps, options.rounds, device)
        their_s, our_s = (statistics.median(times[name]) for name in nets)
        rate = {
            "mode": mode,
            "batch": batch,
            "theirs_clips_per_s": batch / their_s,
            "ours_clips_per_s": batch / our_s,
        }
        rows.append(rate | {"ours_over_theirs": their_s / our_s})
    return {"rows": rows}


def attention(options: Options) -> Json:
    """Time each attention kernel, forward and backward, on the shapes of ViViT-B with eight clips."""
    rows = []
    batch = 1 if options.toy else 8
    for name, (sequences, heads, tokens) in ATTENTION.items():
        tokens = min(tokens, 16) if options.toy else tokens
        shape = (batch * sequences, tokens, 3, heads, 64)
        qkv = torch.rand(shape, device=options.device).to(DTYPE).requires_grad_()

        def step(kernel: SDPBackend | None, qkv: Tensor = qkv) -> None:
            with nullcontext() if kernel is None else sdpa_kernel(kernel):
                F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0)).sum().backward()

        steps = {label: partial(step, kernel) for label, kernel in ({"default": None} | KERNELS).items()}
        rows.append({"shape": name} | medians_ms(dict(steps), options))
    return {"rows": rows}


def kernels(options: Options) -> Json:
    """Time a training step with each attention kernel and with the default choice of torch."""
    rows = []
    for name in ("vivit_st", "vivit_fe"):
        net = build(options, name, "B").train()
        video, optimizer = clips(net, 2 if options.toy else 8, options.device), plain_sgd(net)

        def step(
            kernel: SDPBackend | None, net: ViViT = net, video: Tensor = video, optimizer: Any = optimizer
        ) -> None:
            with nullcontext() if kernel is None else sdpa_kernel(kernel):
                train(net, optimizer, video, DTYPE)

        fused = {label: kernel for label, kernel in KERNELS.items() if label != "math"}
        steps = {label: partial(step, kernel) for label, kernel in ({"default": None} | fused).items()}
        rows.append({"model": f"{name} B, {len(video)} clips"} | medians_ms(dict(steps), options))
    return {"rows": rows}


def optimizer(options: Options) -> Json:
    """Time the step of each optimizer for vivit_fe B."""
    net, rows = build(options, "vivit_fe", "B"), []
    for parameter in net.parameters():
        parameter.grad = torch.rand_like(parameter)
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        extra: Json = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        ways: dict[str, Json] = {"default": {}, "fused": {"fused": True}, "foreach": {"foreach": True}}
        ways["one by one"] = {"foreach": False}
        steps = {
            name: kind(parameter_groups(net), lr=1e-4, weight_decay=0.05, **extra, **way).step
            for name, way in ways.items()
        }
        rows.append({"optimizer": kind.__name__} | medians_ms(dict(steps), options))
    return {"rows": rows}


def layout(options: Options) -> Json:
    """Time the tubelet embedding, forward and backward, as a matrix product and as a convolution.

    Clips are laid out in memory as in training ([B, T, C, H, W]), as [B, C, T, H, W], or as channels last.
    """
    net, rows = build(options, "vivit_fe", "B"), []
    video = clips(net, 2 if options.toy else 8, options.device)
    layouts = {
        "default": video.transpose(1, 2).contiguous().transpose(1, 2),
        "contiguous": video,
        "channels last": video.contiguous(memory_format=torch.channels_last_3d),
    }
    product, convolution = net.embedding, net.embedding.projection

    def step(embed: nn.Module, video: Tensor) -> None:
        with torch.autocast(options.device.type, DTYPE):
            embedded = embed(video)
        embedded.float().sum().backward()

    for name, embed in (("product", product), ("convolution", convolution)):
        steps = {label: partial(step, embed, video) for label, video in layouts.items()}
        rows.append({"embedding": name} | medians_ms(dict(steps), options))
    return {"rows": rows}


def loader(options: Options) -> Json:
    from gpu_loader import loader_to_step

    return loader_to_step(options.work, options.toy)


def parse() -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = (model, peers, attention, kernels, optimizer, layout, loader)
    parser.add_argument("what", choices=[function.__name__ for function in known])
    parser.add_argument("--model", default="vivit_fe")
    parser.add_argument("--size", default="B")
    parser.add_argument("--mode", choices=("train", "infer"), default="train")
    parser.add_argument("--compiled", choices=("", "blocks", "whole"), default="")
    parser.add_argument("--results", type=Path, help="file with the results so far")
    parser.add_argument("--batches-of", default="", help="row in these results whose batch sizes are used")
    parser.add_argument("--work", type=Path, default=Path("gpu-results/work"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--toy", action="store_true")
    return parser.parse_args(namespace=Options())


def write(options: Options, result: Json) -> None:
    if options.json:
        options.json.write_text(json.dumps(result), encoding="utf-8")


def main() -> None:
    options = parse()
    result: Json = globals()[options.what](options)
    write(options, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
