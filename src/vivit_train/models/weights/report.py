"""What loading weights did to each parameter of a model."""

import re
from collections import Counter
from dataclasses import dataclass, field

from vivit_train.utils.text import plural

MOST_ACTIONS = 7  # so that a terminal shows ten lines at most


@dataclass
class LoadReport:
    """What happened to each parameter of the model.

    Attributes:
        rows: parameter -> what was done: "copied", "copied, scaled" (layer scale went into it), "inflated",
            "resized", "repeated", "resized, repeated", "interpolated", "zero" (with a reason in brackets) or
            "random" (left as initialised).
        unused: weights of the source that went nowhere.
        coverage: the share of the parameters that a source of its kind has a counterpart for which it filled.
        kind: what the source is.
    """

    source: str
    rows: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    coverage: float = 0.0
    kind: str = "an image ViT"

    def full(self) -> str:
        """Every parameter on a line of its own."""
        return "\n".join(
            [f"weights from {self.source}", *(f"{action:<18} {name}" for name, action in self.rows.items())]
        )

    def __str__(self) -> str:
        """A line for each action, with the first of its parameters; at most ten lines."""
        actions: dict[str, dict[str, None]] = {}
        for name, action in self.rows.items():
            actions.setdefault(action, {})[re.sub(r"blocks\.\d+\.", "blocks.*.", name)] = None
        counts = Counter(self.rows.values())
        lines = [f"weights from {self.source}: {self.coverage:.1%} of what {self.kind} can give"]
        for action, names in list(actions.items())[:MOST_ACTIONS]:
            shown = ", ".join([*list(names)[:2], *(["..."] if len(names) > 2 else [])])
            lines.append(f"  {action:<18} {plural(counts[action], 'parameter')}: {shown}")
        if len(actions) > MOST_ACTIONS:
            lines.append(f"  and {len(actions) - MOST_ACTIONS} other actions")
        if self.unused:
            lines.append(f"  not used: {', '.join(self.unused[:4])}{', ...' if len(self.unused) > 4 else ''}")
        return "\n".join(lines)
