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
PYTHON = sys.executable
VIVIT = [PYTHON, "-m", "vivit_train.cli"]
BENCH = "--dtype bf16 --batch 1,2,4,8,16,32,64 --rounds 10 --variants sdpa,compiled"
PEERS = "--sizes B --clips 8 --dtype bf16 --rounds 10 --compiled --device cuda"
TOY = [
    "model.tubelet=[2,16,16]",
    "model.dim=32",
    "model.depth=1",
    "model.heads=2",
    "data.frames=4",
    "data.crop=32",
    "data.short_side=36",
]


def commands(toy: bool, folder: Path) -> dict[str, list[str]]:
    """By heading. The JSON of the benches goes into `folder`."""
    size, device = (TOY, "cpu") if toy else (["data=kinetics400"], "cuda")
    run, found = folder / "runs", {}
    options = "--batch 1,2 --rounds 2 --variants eager,sdpa" if toy else BENCH
    for model in ("vivit_fe", "vivit_st"):
        for letter in ("B", "L"):
            words = [*size, f"model={model}", f"model.size={letter}", *options.split(), "--device", device]
            name = f"{model} {letter}"
            found[name] = [*VIVIT, "bench", "model", *words, "--json", str(folder / f"{name}.json")]
    options = "--sizes Ti --frames 4 --crop 32 --rounds 2" if toy else PEERS
    found["Beside Hugging Face's"] = [PYTHON, "tests/speed_model.py", "peers", "ratio", *options.split()]
    trainer = "trainer=cpu" if toy else "trainer=gpu"
    found["Whole training steps"] = [*VIVIT, "bench", "train", *size, "model=vivit_fe", trainer]
    train = [PYTHON, "train.py"]
    ddp = ["debug=default", "trainer=ddp_cpu" if toy else "trainer=ddp", "trainer.devices=1"]
    found["DDP with one process"] = [*train, *ddp, f"hydra.run.dir={run / 'ddp'}"]
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
            said = shlex.join(command).replace(PYTHON, "python").replace(f"{folder}/", "")
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
