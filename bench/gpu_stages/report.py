"""How a stage hands in its figures: one dict per figure, at once, whatever becomes of the next one."""

import gc
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Line = dict[str, Any]


@dataclass
class Report:
    """The figures of one stage on one device.

    On the CPU the stage is a rehearsal: the same code at tiny sizes, whose figures say nothing about a GPU.
    """

    stage: str
    device: torch.device
    write: Callable[[Line], None]
    seconds: float = float("inf")  # from now
    _deadline: float = field(init=False)
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        self._last = time.monotonic()
        self._deadline = self._last + self.seconds

    @property
    def rehearsal(self) -> bool:
        return self.device.type == "cpu"

    def left(self) -> float:
        """Seconds until the parent ends this stage."""
        return self._deadline - time.monotonic()

    def figure(
        self,
        name: str,
        value: Any,
        unit: str = "",
        *,
        expected: Any = None,
        ok: bool | None = True,
        error: str | None = None,
    ) -> None:
        """One line. `expected` is what `ok` was judged by, when there is such a thing; `ok` is None when nothing was
        measured for want of time.
        """
        now = time.monotonic()
        if isinstance(value, float) and not math.isfinite(value):  # JSON has no such numbers
            value, ok = str(value), False
        self.write(
            {
                "stage": self.stage,
                "name": name,
                "value": value,
                "unit": unit,
                "expected": expected,
                "ok": ok,
                "seconds": round(now - self._last, 3),
                "error": error,
            }
        )
        self._last = now

    def at_most(self, name: str, value: float, limit: float, unit: str = "") -> None:
        self.figure(name, value, unit, expected=f"<= {limit:g}", ok=value <= limit)  # NaN is not

    def at_least(self, name: str, value: float, limit: float, unit: str = "") -> None:
        self.figure(name, value, unit, expected=f">= {limit:g}", ok=value >= limit)

    def equal(self, name: str, value: Any, expected: Any, unit: str = "") -> None:
        self.figure(name, value, unit, expected=expected, ok=value == expected)

    def attempt(self, name: str, measure: Callable[..., Any], *args: Any, needs: float = 0.0) -> bool:
        """Run one part of the stage; what it raises becomes a line, and the stage goes on. True: nothing was raised.

        An error that leaves the CUDA context unusable ends the stage: everything after it would fail alike.

        Args:
            needs: seconds that it takes on a GPU; it is left out when fewer are left.
        """
        if self.left() <= (0 if self.rehearsal else needs):
            why = f"left out: it takes some {needs:.0f} s" if needs else "left out: the time of this stage is spent"
            self.figure(name, None, ok=None, error=why)
            return False
        raised = False
        try:
            measure(*args)
        except Exception as error:
            raised = True
            self.figure(name, None, ok=False, error=describe(error))
            traceback.print_exc()
        if raised and unusable(self.device):
            raise SystemExit("the GPU context is lost; the stage ends here")
        free(self.device)
        return not raised


def describe(error: BaseException) -> str:
    """The kind of an error and its first line, short enough for a table."""
    said = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {said[0][:300]}"


def unusable(device: torch.device) -> bool:
    """Whether the CUDA context is lost, as after an illegal address."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize()
        torch.ones(1, device=device).item()
    except torch.cuda.OutOfMemoryError:
        return False
    except RuntimeError:
        return True
    return False


def free(device: torch.device) -> None:
    """Give cached memory back, so that one part never starves the next."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
