"""Render docs/gpu.md from the results."""

from collections.abc import Iterable
from typing import Any

from gpu_rows import Row, rows

Json = dict[str, Any]
HEAD = """# On a GPU

`scripts/gpu.sh` (benchmarks/gpu.py) generates this page from docs/gpu.jsonl. It runs on a bare machine that has
torch, timm, lightning, torchmetrics, transformers and pytest but no network:

<!-- run by: tests/test_gpu_script.py -->
```
make gpu-wheels                     # on a machine with a network: fills wheels/ (36 MB), to copy with the clone
scripts/gpu.sh check                # at most 4 minutes
scripts/gpu.sh speed                # at most 5 minutes
scripts/gpu.sh all --budget 540     # both, most valuable rows first
scripts/gpu.sh page --out DIR       # renders the page on another machine, from the results in DIR
```

If time runs out, run the same command again: rows that are ok in the results are not measured again, and rows that
failed run last. A row is stopped after 55 s. MFU is relative to the speed of one large bf16 matrix product in the
same process.
"""
SHARES = ("attention", "matrix products", "rest")


def versions_text(machine: Json) -> str:
    names = ("torch", "torchvision", "timm", "lightning", "transformers")
    return f"Python {machine['python']}, {', '.join(f'{name} {machine[name]}' for name in names)}"


def machine_text(machine: Json) -> str:
    cuda = f", {machine['memory']}, CUDA {machine['cuda']}, driver {machine['driver']}" if machine["cuda"] else ""
    return f"{machine['device']}{cuda}; {versions_text(machine)}"


def render(results: list[Json]) -> str:
    real = [result for result in results if not result["machine"]["toy"]]
    machines = list(dict.fromkeys(machine_text(result["machine"]) for result in real))
    lines = [HEAD]
    if not machines:
        lines += ["Not measured yet, as no GPU was available.", "", *tables([])]
    for machine in machines:
        mine = [result for result in real if machine_text(result["machine"]) == machine]
        lines += [f"Measured on {', '.join(sorted({result['date'] for result in mine}))}: {machine}.", ""]
        lines += tables(mine)
    lines += toys([result for result in results if result["machine"]["toy"]])
    return "\n".join(lines).rstrip() + "\n"


def tables(results: list[Json]) -> list[str]:
    found = {result["row"]: result for result in results}
    lines = ["## Checks", "", "| check | status | passed, failed, skipped | s |", "|---|---|---|---|"]
    for row in of_kind("check"):
        cells = check_cells(found[row.name]) if row.name in found else ["not measured", "", ""]
        lines.append(f"| {row.title} | {' | '.join(cells)} |")
    lines += ["", "The first check runs `python " + " ".join(of_kind("check")[0].command[:-1]) + "`."]
    lines += ["", "## Speed", ""]
    lines += [
        "Clips are 32x224x224. Models have 400 classes and use bf16 autocast. Batch sizes are powers of 2.",
        "",
    ]
    shares = "attention / matrix products / rest"
    lines += [f"| model | batch size | clips/s | MFU | peak memory, GB | {shares} | first step, s |"]
    lines += ["|---" * 7 + "|"]
    for row in of_kind("speed"):
        if row.command[1] == "model":
            lines += model_lines(row, found.get(row.name))
    for row in of_kind("speed"):
        if row.command[1] != "model":
            lines += ["", f"### {row.title[0].upper()}{row.title[1:]}", "", *other_lines(found.get(row.name))]
    lines += ["", "## Commands", ""]
    return [*lines, *(f"- {row.title}: `python {command(row)}`" for row in of_kind("speed")), ""]


def of_kind(kind: str) -> list[Row]:
    return [row for row in rows(toy=False) if row.kind == kind]


def command(row: Row) -> str:
    return " ".join(word for word in row.command if "{json}" not in word and word != "--json")


def check_cells(result: Json) -> list[str]:
    counts = result["result"]
    numbers = ", ".join(str(counts[name]) for name in ("passed", "failed", "skipped")) if counts else ""
    said = f"{result['status']}: {cell(result['said'])}" if result["status"] != "ok" else "ok"
    return [said, numbers, f"{result['seconds']:.0f}"]


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def model_lines(row: Row, result: Json | None) -> list[str]:
    if result is None or not result["result"]:
        said = "not measured" if result is None else f"{result['status']}: {cell(result['said'])}"
        return [f"| {row.title} | {said} | | | | | |"]
    found = result["result"]
    lines = []
    for measured in found["rows"]:
        last = measured is found["rows"][-1] and "shares" in found  # Without shares, the row was stopped early.
        where = " / ".join(f"{found['shares'][name]:.0%}" for name in SHARES) if last else ""
        title = row.title if result["status"] == "ok" else f"{row.title} ({result['status']})"
        cells = [title, str(measured["batch"]), f"{measured['clips_per_s']:.3g}", f"{measured['mfu']:.0%}"]
        cells += [f"{measured['peak_gb']:.3g}", where, f"{found['first_step_s']:.1f}" if last else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def other_lines(result: Json | None) -> list[str]:
    if result is None:
        return ["not measured"]
    if not result["result"]:
        return [f"{result['status']}: {result['said']}"]
    found = result["result"]
    measured = found.get("rows") or [flat(found)]
    names = list(dict.fromkeys(name for row in measured for name in row))
    lines = [f"| {' | '.join(name.replace('_', ' ') for name in names)} |", "|---" * len(names) + "|"]
    return lines + [f"| {' | '.join(shown(row.get(name, '')) for name in names)} |" for row in measured]


def flat(found: Json) -> Json:
    """Flatten one level of nested dictionaries."""
    nested = [value for value in found.values() if isinstance(value, dict)]
    return {
        name: value for part in (found, *nested) for name, value in part.items() if not isinstance(value, dict)
    }


def shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else cell(str(value))


def short(result: Json) -> str:
    """Format a result in one line."""
    found = result["result"]
    if result["status"] != "ok" or not found:
        return str(result["said"])
    if "passed" in found:
        return ", ".join(f"{found[name]} {name}" for name in ("passed", "failed", "skipped"))
    measured = found.get("rows") or [flat(found)]
    return ", ".join(f"{name} {shown(value)}" for name, value in measured[-1].items())


def toys(results: list[Json]) -> list[str]:
    """List the results of toy runs, which need no GPU."""
    lines = ["## Toy run on a CPU", ""]
    lines += [
        "`scripts/gpu.sh all --toy` checks that every row runs. The speeds of toy models are not meaningful."
    ]
    lines += ["", "| versions | rows ok | tests passed, failed, skipped | rows not ok | date |", "|---" * 5 + "|"]
    for machine in dict.fromkeys(versions_text(result["machine"]) for result in results):
        newest = {r["row"]: r for r in results if versions_text(r["machine"]) == machine}
        mine = list(newest.values())
        ok = [result for result in mine if result["status"] == "ok"]
        bad = ", ".join(f"{result['row']}: {cell(result['said'])}" for result in mine if result not in ok)
        counts = (total(mine, name) for name in ("passed", "failed", "skipped"))
        dates = ", ".join(sorted({result["date"] for result in mine}))
        number = f"{len(ok)} of {len(rows(toy=True))}"
        lines.append(f"| {machine} | {number} | {', '.join(map(str, counts))} | {bad or 'none'} | {dates} |")
    reasons = dict.fromkeys(
        reason for result in results for reason in sorted(result["result"].get("reasons", [])) if reason
    )
    return [*lines, "", "Reasons for skipped tests:", "", *(f"- {cell(reason)}" for reason in reasons)]


def total(results: Iterable[Json], name: str) -> int:
    return sum(result["result"].get(name, 0) for result in results)
