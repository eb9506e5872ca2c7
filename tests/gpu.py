"""What a GPU does with the model, as a page: docs/gpu.md.

make bench-gpu, or: python tests/gpu.py [--out FILE]     where there is no GPU, the page says 'not measured'
python tests/gpu.py --toy --out FILE                     the same commands on the CPU, with models of toy size
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
VIVIT = [sys.executable, "-m", "vivit_train.cli"]
TOY = ["model.dim=32", "model.depth=1", "model.heads=2", "data.frames=4", "data.crop=32", "data.short_side=36"]


def commands(toy: bool, folder: Path) -> dict[str, list[str]]:
    """By heading. The JSON of the benches goes into `folder`."""
    device, size = ("cpu", TOY) if toy else ("cuda", ["data.frames=32", "data.crop=224", "data.short_side=256"])
    batches, dtype = ("1,2", "float32") if toy else ("1,2,4,8,16,32,64", "bf16")
    found: dict[str, list[str]] = {}
    for model in ("vivit_fe", "vivit_st"):
        for letter in ("B", "L"):
            name = f"{model} {letter}"
            words = [f"model={model}", f"model.size={letter}", "model.tubelet=[2,16,16]", "model.temporal_depth=4"]
            words = [word for word in words if model == "vivit_fe" or "temporal" not in word]
            if not toy:
                words += ["model.dim=null", "model.depth=null", "model.heads=null"]
            options = ["--batch", batches, "--dtype", dtype, "--device", device, "--rounds", "2" if toy else "10"]
            options += ["--variants", "eager,sdpa" if toy else "sdpa,compiled"]
            out = ["--json", str(folder / f"{name}.json")]
            found[name] = [*VIVIT, "bench", "model", *words, *size, *options, *out]
    peers = ["--sizes", "Ti" if toy else "B", "--clips", "1" if toy else "8", "--dtype", dtype, "--device", device]
    peers += ["--frames", "4", "--crop", "32"] if toy else ["--compiled", "--rounds", "10"]
    found["Beside Hugging Face's"] = [sys.executable, "tests/speed_model.py", "peers", "ratio", *peers]
    trainer = "trainer=cpu" if toy else "trainer=gpu"
    words = TOY if toy else ["model.size=B", "model.dim=null", "model.depth=null", "model.heads=null", *size]
    words += ["model.tubelet=[2,16,16]", trainer]
    found["Whole training steps"] = [*VIVIT, "bench", "train", *words, "--steps", "3" if toy else "20"]
    train, run = [sys.executable, "train.py"], folder / "runs"
    ddp = ["trainer=ddp_cpu", "trainer.devices=1"] if toy else ["trainer=ddp", "trainer.devices=1"]
    found["DDP with one process"] = [*train, "debug=default", *ddp, f"hydra.run.dir={run / 'ddp'}"]
    demo = ["debug=default"] if toy else []
    found["The demo, from videos to its score"] = [*train, *demo, trainer, f"hydra.run.dir={run / 'demo'}"]
    return found


def page(toy: bool, has_gpu: bool) -> Iterator[str]:
    """Its lines, as they come."""
    device = (
        "the CPU, at toy size" if toy else torch.cuda.get_device_name() if has_gpu else "no GPU here: not measured"
    )
    yield "# On a GPU"
    yield ""
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    yield f"Made by `make bench-gpu` (tests/gpu.py): {device}; {versions}."
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for heading, command in commands(toy, folder).items():
            said = shlex.join(command).replace(sys.executable, "python").replace(f"{folder}/", "")
            yield from ("", f"## {heading}", "", "```", said, "```", "")
            if not (toy or has_gpu):
                yield "not measured"
                continue
            print(heading, file=sys.stderr, flush=True)
            start_s = time.monotonic()
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                yield f"failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}"
                continue
            table = done.stdout.strip()
            yield table if "|---" in table else f"```\n{table}\n```"
            yield from ("", f"{time.monotonic() - start_s:.0f} s, all included")
            if (file := folder / f"{heading}.json").exists():
                yield from top_kernels(file)


def top_kernels(file: Path) -> Iterator[str]:
    """Of the training cell with the most clips that was measured."""
    rows = [row for row in json.loads(file.read_text())["rows"] if row["top"] and row["cell"]["mode"] == "train"]
    if rows:
        yield from ("", f"What takes the time of training with {rows[-1]['cell']['batch']} clips:", "")
        yield from (f"- {share:.0%} `{name[:100]}`" for name, share in rows[-1]["top"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "gpu.md")
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args()
    lines = []
    for line in page(options.toy, torch.cuda.is_available()):
        lines.append(line)
        options.out.write_text("\n".join(lines) + "\n")  # what is measured stays, whatever comes


if __name__ == "__main__":
    main()
