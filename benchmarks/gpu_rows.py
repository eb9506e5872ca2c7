"""The rows of docs/gpu.md, most valuable first, with the command that measures each one."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

LIMIT_S = 55.0  # This is the time limit of one row, including the start of its process.
TOY_LIMIT_S = 300.0  # Toy runs get more time, as they may share the CPU with other programs.


@dataclass(frozen=True)
class Row:
    """One row, measured by a separate process.

    Attributes:
        name: Name of the row, "check/..." or "speed/...".
        title: Description of what the row measures.
        command: Arguments of the Python interpreter. {json} stands for the file for the result, {report} for the
            report of pytest, {results} for the file with the results so far, and {work} for a working folder.
        limit_s: Time limit in seconds.
    """

    name: str
    title: str
    command: tuple[str, ...]
    limit_s: float = LIMIT_S

    @property
    def kind(self) -> str:
        return self.name.partition("/")[0]


def check(name: str, title: str) -> Row:
    words = ("-m", "pytest", f"tests/gpu/test_gpu_{name}.py", "-m", "gpu", "--gpu-report={report}")
    return Row(f"check/{name}", title, words)


def speed(name: str, title: str, *words: str) -> Row:
    return Row(f"speed/{name}", title, ("benchmarks/gpu_speed.py", *words, "--json={json}"))


def model(letter: str, size: str, mode: str, compiled: str = "") -> Row:
    """Return the row for a model. Compiled variants use the batch sizes that the uncompiled row found."""
    name, title = f"{letter}-{size}-{mode}", f"vivit_{letter} {size}, {mode}"
    words = ["model", f"--model=vivit_{letter}", f"--size={size}", f"--mode={mode}"]
    if not compiled:
        return speed(name, title, *words)
    words += [f"--compiled={compiled}", "--results={results}", f"--batches-of=speed/{name}"]
    how = {"blocks": "each block compiled", "whole": "compiled as a whole (model.compile=true)"}[compiled]
    return speed(f"{name}-{compiled}", f"{title}, {how}", *words)


def steps(toy: bool) -> Row:
    """Return the row for the training steps of train.py, measured with `vivit bench train`."""
    small = ["model.dim=32", "model.depth=1", "model.heads=2", "data.frames=4", "data.crop=32", "trainer=cpu"]
    small += ["model.tubelet=[2,16,16]", "data.short_side=36"]
    words = small if toy else ["data=kinetics400", "trainer=gpu"]
    command = ("-m", "vivit_train.tools.cli", "bench", "train", *words, "model=vivit_fe", "--json", "{json}")
    return Row("speed/steps", "whole training steps by stage (vivit bench train)", command)


def rows(toy: bool) -> list[Row]:
    fe_and_st = ("fe", "st")
    return [
        check("parity", "the four models in float32 and bf16 match the CPU in float64, forward and backward"),
        *(model(letter, "B", "train") for letter in fe_and_st),
        check("attention", "the attention kernels match eager attention"),
        check("precision", "bf16-mixed and 16-mixed training overfits two clips"),
        *(model(letter, "B", "train", "blocks") for letter in fe_and_st),
        speed(
            "peers", "vivit_st B compared with Hugging Face's ViViT, same weights, measured alternately", "peers"
        ),
        check("compile", "a compiled run gives the same results, with one graph each for training and validation"),
        check("resume", "a resumed run ends with the weights of an uninterrupted run (deterministic algorithms)"),
        check(
            "augment",
            "augmentation and mixing give the same results on the device as in the workers, draw by draw",
        ),
        check("processes", "DDP and FSDP2 with one process match a run without them"),
        check("memory", "an out-of-memory error names the micro-batch"),
        check("demo", "the demo runs from videos to score"),
        check("loader", "the loader pins memory and leaks none in 200 steps"),
        *(model(letter, "B", "infer") for letter in fe_and_st),
        speed("loader", "end-to-end training: train.py on prepared clips, vivit_fe B", "loader", "--work={work}"),
        steps(toy),
        speed("attention", "candidates: attention kernels by shape, bf16, forward and backward", "attention"),
        speed("kernels", "candidates: training step with each attention kernel, including cuDNN", "kernels"),
        speed("optimizer", "candidates: fused and foreach optimizers, vivit_fe B", "optimizer"),
        speed("layout", "candidates: memory formats of the clips and tubelet embeddings", "layout"),
        *(model(letter, "L", "train") for letter in fe_and_st),
        *(model(letter, "B", "infer", "blocks") for letter in fe_and_st),
        *(model(letter, "L", "infer") for letter in fe_and_st),
        model("fe", "B", "train", "whole"),
    ]


def chosen(what: str, toy: bool, only: Iterable[str]) -> list[Row]:
    """Select the rows of a kind ("check", "speed" or "all"), or only the named ones among them.

    Raises:
        SystemExit: A name does not belong to any of these rows.
    """
    known = [row for row in rows(toy) if what in ("all", row.kind)]
    known = [replace(row, limit_s=TOY_LIMIT_S) for row in known] if toy else known
    names = set(only)
    if unknown := names - {row.name for row in known}:
        names_text = ", ".join(row.name for row in known)
        raise SystemExit(f"--only {','.join(sorted(unknown))}: must be among {names_text}")
    return [row for row in known if not names or row.name in names]
