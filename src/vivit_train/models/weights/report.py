"""The weight-loading report, which says what loading did to each parameter of a model."""

import re
from collections import Counter
from dataclasses import dataclass, field

from vivit_train.models.weights.files import Statistics
from vivit_train.utils.text import percent, plural

MOST_ACTIONS = 7  # Without notes and license, this limits a report to ten lines on the terminal.


@dataclass
class LoadReport:
    """The report of what loading weights did to each parameter of a model.

    Attributes:
        source: The source of the weights: a file, a folder, or a model name.
        rows: The action for each parameter: "copied", "copied, scaled" (a layer scale was folded in), "inflated",
            "resized", "repeated", "resized, repeated", "interpolated", "zero" (with a reason in parentheses), or
            "random" (newly initialized, with a reason if it is not the model's alone).
        unused: The names of weights in the source that were not used.
        coverage: The share of parameters that were filled, among those that a source of this kind can fill.
        kind: The kind of the source, for example "an image ViT".
        statistics: The mean and std of the normalization of the source, for pixels in [0, 1], or None if unknown.
        license: The license of the weights, or None if unknown.
        notes: What else there is to know about the start, one line each.
    """

    source: str
    rows: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    coverage: float = 0.0
    kind: str = "an image ViT"
    statistics: Statistics | None = None
    license: str | None = None
    notes: list[str] = field(default_factory=list)

    def full(self) -> str:
        """Returns the full report with one line per parameter."""
        return "\n".join(
            [
                f"weights from {self.source}",
                *(f"{action:<18} {name}" for name, action in self.rows.items()),
                *self.remarks(),
            ]
        )

    def __str__(self) -> str:
        """Returns a summary: one line per action, with the first of its parameters, and the remarks."""
        actions: dict[str, dict[str, None]] = {}
        for name, action in self.rows.items():
            actions.setdefault(action, {})[re.sub(r"blocks\.\d+\.", "blocks.*.", name)] = None
        counts = Counter(self.rows.values())
        lines = [f"weights from {self.source}: {percent(self.coverage, 1)} of what {self.kind} can fill"]
        for action, names in list(actions.items())[:MOST_ACTIONS]:
            shown = ", ".join([*list(names)[:2], *(["..."] if len(names) > 2 else [])])
            lines.append(f"  {action:<18} {plural(counts[action], 'parameter')}: {shown}")
        if len(actions) > MOST_ACTIONS:
            lines.append(f"  and {plural(len(actions) - MOST_ACTIONS, 'other action')}")
        if self.unused:
            lines.append(f"  not used: {', '.join(self.unused[:4])}{', ...' if len(self.unused) > 4 else ''}")
        return "\n".join([*lines, *(f"  {remark}" for remark in self.remarks())])

    def remarks(self) -> list[str]:
        """Returns the notes and the license, one line each."""
        return [*(f"note: {note}" for note in self.notes), *([f"license: {self.license}"] if self.license else [])]
