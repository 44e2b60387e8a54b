"""Computed tensors against recorded ones: how far apart they are, and whether that is near enough."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Verdict:
    """What the comparison of one tensor found."""

    name: str
    shape: tuple[int, ...]
    """Shape of the recorded tensor."""
    error: float | None
    """`relative_error` of the computed tensor, NaN where either holds NaN; None where nothing could be compared."""
    tolerance: float
    """The largest error that still agrees."""
    mismatch: str = ""
    """Why nothing could be compared, in words; empty otherwise."""

    @property
    def agrees(self) -> bool:
        """Whether the computed tensor is there, has the recorded shape and lies within the tolerance."""
        return self.error is not None and self.error <= self.tolerance

    def __str__(self) -> str:
        """One line for people."""
        found = self.mismatch or f"{list(self.shape)}  {self.error:.2e} (limit {self.tolerance:.0e})"
        return f"{'ok' if self.agrees else 'FAIL':<5} {self.name}  {found}"


def relative_error(computed: Tensor, recorded: Tensor) -> float:
    """Largest absolute difference of two tensors of one shape, divided by the largest absolute recorded entry.

    Calculated in fp64. Two tensors without entries do not differ; NaN in either tensor gives NaN.
    """
    if not recorded.numel():
        return 0.0
    difference = (computed.double() - recorded.double()).abs().max()
    return (difference / recorded.double().abs().max().clamp(min=1e-30)).item()


def compare(
    recorded: Mapping[str, Tensor], computed: Mapping[str, Tensor], tolerance: Callable[[str], float]
) -> list[Verdict]:
    """A verdict on every recorded tensor, in their order. Computed tensors that nobody recorded are ignored.

    Args:
        recorded: what each name should hold.
        computed: what each name holds.
        tolerance: the largest `relative_error` that is accepted for the tensor of a name.
    """
    verdicts = []
    for name, reference in recorded.items():
        ours, shape, error, mismatch = computed.get(name), tuple(reference.shape), None, ""
        if ours is None:
            mismatch = "not computed"
        elif ours.shape != reference.shape:
            mismatch = f"{list(ours.shape)}, not {list(shape)}"
        else:
            error = relative_error(ours, reference)
        verdicts.append(Verdict(name, shape, error, tolerance(name), mismatch))
    return verdicts
