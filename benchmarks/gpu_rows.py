"""The rows of docs/gpu.md, most valuable first: what each one measures, and by which command."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

LIMIT_S = 55.0  # of one row, its process's start included
TOY_LIMIT_S = 300.0  # on a CPU that others use too


@dataclass(frozen=True)
class Row:
    """One row, measured by a process of its own.

    Attributes:
        name: "check/..." or "speed/...".
        title: what it measures.
        command: arguments of the Python interpreter. {json} is where the result goes, {report} pytest's,
            {results} the results so far, {work} a folder for files.
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
    """The same batches for all ways to compile: those that the row without found."""
    name, title = f"{letter}-{size}-{mode}", f"vivit_{letter} {size}, {mode}"
    words = ["model", f"--model=vivit_{letter}", f"--size={size}", f"--mode={mode}"]
    if not compiled:
        return speed(name, title, *words)
    words += [f"--compiled={compiled}", "--results={results}", f"--batches-of=speed/{name}"]
    how = {"blocks": "each block compiled", "whole": "compiled as one (model.compile=true)"}[compiled]
    return speed(f"{name}-{compiled}", f"{title}, {how}", *words)


def steps(toy: bool) -> Row:
    """What train.py does, by the tool that users have for it."""
    small = ["model.dim=32", "model.depth=1", "model.heads=2", "data.frames=4", "data.crop=32", "trainer=cpu"]
    small += ["model.tubelet=[2,16,16]", "data.short_side=36"]
    words = small if toy else ["data=kinetics400", "trainer=gpu"]
    command = ("-m", "vivit_train.tools.cli", "bench", "train", *words, "model=vivit_fe", "--json", "{json}")
    return Row("speed/steps", "whole training steps by stage (vivit bench train)", command)


def rows(toy: bool) -> list[Row]:
    fe_and_st = ("fe", "st")
    return [
        check("parity", "the four models, forward and backward, float32 and bf16: as the CPU in float64"),
        *(model(letter, "B", "train") for letter in fe_and_st),
        check("attention", "the kernels of attention: as attention step by step"),
        check("precision", "bf16-mixed and 16-mixed learn two clips by heart"),
        *(model(letter, "B", "train", "blocks") for letter in fe_and_st),
        speed("peers", "vivit_st B beside Hugging Face's ViViT, the same weights, in turns", "peers"),
        check("compile", "a compiled run is the same run, with one graph each for training and validation"),
        check("resume", "a resumed run has the weights of an uninterrupted one (deterministic algorithms)"),
        check("augment", "augmentation and mixing on the device: the worker's, draw by draw"),
        check("processes", "DDP and FSDP2 with one process: as without"),
        check("memory", "a lack of memory names the micro-batch"),
        check("demo", "the demo, from videos to its score"),
        check("loader", "pinned memory; nothing leaks in 200 steps"),
        *(model(letter, "B", "infer") for letter in fe_and_st),
        speed("loader", "loader to step: train.py on prepared clips, vivit_fe B", "loader", "--work={work}"),
        steps(toy),
        speed(
            "attention", "candidates: the kernels of attention, by shape, bf16, forward and backward", "attention"
        ),
        speed("kernels", "candidates: a training step by each kernel of attention (cuDNN's too)", "kernels"),
        speed("optimizer", "candidates: fused and foreach optimizers, vivit_fe B", "optimizer"),
        speed("layout", "candidates: memory formats of the clips, and how tubelets are embedded", "layout"),
        *(model(letter, "L", "train") for letter in fe_and_st),
        *(model(letter, "B", "infer", "blocks") for letter in fe_and_st),
        *(model(letter, "L", "infer") for letter in fe_and_st),
        model("fe", "B", "train", "whole"),
    ]


def chosen(what: str, toy: bool, only: Iterable[str]) -> list[Row]:
    """Those of a kind, or "all"; and where names are given, these alone.

    Raises:
        SystemExit: a name is no row's.
    """
    known = [row for row in rows(toy) if what in ("all", row.kind)]
    known = [replace(row, limit_s=TOY_LIMIT_S) for row in known] if toy else known
    names = set(only)
    if unknown := names - {row.name for row in known}:
        raise SystemExit(f"--only {','.join(sorted(unknown))}: one of {', '.join(row.name for row in known)}")
    return [row for row in known if not names or row.name in names]
