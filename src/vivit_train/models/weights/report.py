"""What loading weights did to each parameter of a model."""

import re
from dataclasses import dataclass, field


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
        """A line for each kind of parameter, the blocks of an encoder taken together."""
        grouped: dict[tuple[str, str], list[int]] = {}
        for name, action in self.rows.items():
            number = re.search(r"blocks\.(\d+)\.", name)
            key = re.sub(r"blocks\.\d+\.", "blocks.*.", name)
            grouped.setdefault((key, action), []).append(int(number[1]) if number else -1)
        lines = [f"weights from {self.source}: {self.coverage:.1%} of what {self.kind} can give"]
        for (name, action), numbers in grouped.items():
            span = f"{min(numbers)}-{max(numbers)}" if len(numbers) > 1 else str(numbers[0])
            lines.append(f"  {action:<18} {name.replace('*', span)}")
        if self.unused:
            lines.append(f"  not used: {', '.join(self.unused[:8])}{', ...' if len(self.unused) > 8 else ''}")
        return "\n".join(lines)
