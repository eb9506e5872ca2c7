"""What a step costs in numbers that are the same on every machine: tests/goldens/costs.json holds what they were.

make bench-guard, or: python benchmarks/guard.py        compares, and fails where one has grown
python benchmarks/guard.py --write                      takes today's numbers for the next comparison
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vivit_train.data.video import decode
from vivit_train.models.vivit import MODELS, ModelName, ViViT
from vivit_train.tools.bench.model import in_precision
from vivit_train.training.profiling import bytes_kept, forward_flops

FILE = Path(__file__).parents[1] / "tests/goldens/costs.json"
COPIES = {"clone", "copy_", "_to_copy", "cat", "stack"}
Costs = dict[str, dict[str, int]]


def small(model: ModelName, **kwargs: Any) -> ViViT:
    """8 frames of 32 pixels, 4 x 4 tokens: counts depend on the code, and hardly on the size."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 2, "temporal_depth": 2, "frames": 8, "image_size": 32}
    return ViViT(model, num_classes=7, **sizes, **kwargs)


class Copies(TorchDispatchMode):
    """Counts the operators that copy tensors: permuting and casting ones too."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += func.overloadpacket.__name__ in COPIES
        return func(*args, **(kwargs or {}))


def of_model(model: ModelName) -> dict[str, int]:
    with torch.device("meta"):
        base = ViViT.from_size(model, "B", num_classes=400)
    costs = {"MFLOPs of ViViT-B, forward": forward_flops(base) // 10**6}
    net = small(model)
    video = torch.rand(2, *net.input_shape)
    precisions = {"float32": torch.float32, "bf16": torch.bfloat16}
    if torch.cpu._is_amx_tile_supported():  # bf16 goes by torch's kernel there, which keeps other bytes
        del precisions["bf16"]
    for name, dtype in precisions.items():

        def forward(dtype: torch.dtype = dtype) -> Tensor:
            with in_precision(dtype, video.device):
                return net(video)  # type: ignore[no-any-return]

        costs[f"bytes kept for backward, {name}"] = bytes_kept(net, forward)
        with Copies() as copies:
            loss = forward().float().square().mean()
        costs[f"copies forward, {name}"] = copies.seen
        with Copies() as copies:
            loss.backward()
        costs[f"copies backward, {name}"] = copies.seen
    for what in ("mlp", "block"):
        other = small(model, checkpoint_activations=what)
        costs[f"bytes kept for backward, checkpoint_activations={what}"] = bytes_kept(other, lambda: other(video))  # noqa: B023
    return costs | graphs(model)


def graphs(model: ModelName) -> dict[str, int]:
    """Of a training and a validation whose last batch is smaller."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled: list[int] = []

    def count(graph: torch.fx.GraphModule, _inputs: object) -> Any:
        compiled.append(len(graph.graph.nodes))
        return graph.forward

    net = small(model, drop_path=0.1)
    net.compile(backend=count, dynamic=True)  # without fullgraph: breaks are to be counted
    for clips in (4, 4):
        net(torch.rand(clips, *net.input_shape)).sum().backward()
    net.eval()
    with torch.inference_mode():
        for clips in (4, 3, 2):
            net(torch.rand(clips, *net.input_shape))
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    torch._dynamo.reset()
    return {"graphs, of training and validation": len(compiled), "graph breaks": breaks}


def of_clips() -> dict[str, int]:
    """Frames that are decoded for a clip of 16 at stride 2 out of 128, from frame 40."""
    from videos import encode

    costs, clip = {}, 40 + 2 * np.arange(16)
    with tempfile.TemporaryDirectory() as folder:
        for name, options in (("GOP 12", 12), ("GOP 250", 250)):
            path = Path(folder) / f"{options}.mp4"
            encode(path, x264_params=f"keyint={options}:min-keyint={options}:scenecut=0", frames=128)
            decoded = 0
            before = decode._decode_from

            def counted(*args: Any, before: Any = before) -> Any:
                nonlocal decoded
                for one in before(*args):
                    decoded += 1
                    yield one

            decode._decode_from = counted
            try:
                decode.read_frames(path, clip)
            finally:
                decode._decode_from = before
            costs[name] = decoded
    return costs


def costs() -> Costs:
    return {model: of_model(model) for model in MODELS} | {"decoded frames per clip": of_clips()}


def grown(now: Costs, then: Costs) -> list[str]:
    """A line for each number that is larger than it was, or has no number to be compared with."""
    lines = []
    for where, numbers in now.items():
        for what, number in numbers.items():
            was = then.get(where, {}).get(what)
            if was is None or number > was:
                lines.append(f"{where}: {what}: {number}, was {was}")
    return lines


def main() -> None:
    now = costs()
    if "--write" in sys.argv:
        version = torch.__version__.partition("+")[0]
        FILE.write_text(json.dumps({"torch": version, "costs": now}, indent=1) + "\n")
        return
    then = json.loads(FILE.read_text())["costs"]
    for where, numbers in now.items():
        for what, number in numbers.items():
            print(f"{where}: {what}: {number}, was {then[where][what]}")
    if lines := grown(now, then):
        sys.exit(
            "\n".join(["", "These have grown:", *lines, "Where that is meant: python benchmarks/guard.py --write"])
        )


if __name__ == "__main__":
    main()
