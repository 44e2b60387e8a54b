"""Things that were left out, counted by the reason why, with a few of their names as examples.

Sources count files this way (`Source.ignored`). Records are counted in `outcomes.py`, each only once however many
epochs visit it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

EXAMPLES = 3
"""How many names are remembered for each reason."""


@dataclass
class Reasons:
    """For each reason, how many things it left out, and the first few of their names."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count one more thing, called `name`, under a reason."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        remember(self.examples.setdefault(reason, []), [name])

    def merge(self, other: "Reasons", prefix: str) -> None:
        """Add the counts of `other`, and its names as paths below `prefix`, for instance the shard they lie in."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            names = [name if name == prefix else f"{prefix}/{name}" for name in other.examples[reason]]
            remember(self.examples.setdefault(reason, []), names)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        return listed(self.counts, self.examples)


def remember(examples: list[str], names: list[str]) -> None:
    """Append the names that `examples` does not hold yet, until it holds EXAMPLES of them."""
    examples += [name for name in map(printable, names) if name not in examples]
    del examples[EXAMPLES:]


def listed(counts: Mapping[str, int], examples: Mapping[str, list[str]]) -> str:
    """Counts and examples in words, sorted by reason: '2 x unreadable file (e.g. a.jpg, b.jpg); 1 x ...'."""
    return "; ".join(
        f"{count} x {reason} (e.g. {', '.join(examples[reason])})" for reason, count in sorted(counts.items())
    )


def printable(name: str) -> str:
    """The name of a file, with those of its bytes escaped that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()
