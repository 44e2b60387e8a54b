"""Fill Triton's cache from second 0: `python -m bench.gpu_stages.warm TARGET PART PARTS` compiles one share of it.

No GPU is touched: the launchers run with CPU tensors, compile and do not launch. Whoever launches the same
specialisation later finds it in the cache.
"""

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator

import torch

from bench.aot import compiling
from bench.measure import fresh, under
from bench.ops import WITH_KERNELS, case_of
from reca_fast.kernels.common.optional_triton import triton

from .child import end_with_the_parent

DTYPES = (torch.bfloat16, torch.float32, torch.float16)


def jobs() -> Iterator[tuple[str, Callable[[], object]]]:
    """Everything that the stages will launch, in the order in which they do."""
    for name in WITH_KERNELS:
        case = case_of(name)
        for dtype in DTYPES:

            def launch(case=case, dtype=dtype) -> None:
                under("triton", case.ours)(fresh(case, case.shapes["small"], dtype, torch.device("cpu")))

            yield f"{name}, {dtype}", launch


def main() -> None:
    target, part, parts = map(int, sys.argv[1:])
    threading.Thread(target=end_with_the_parent, daemon=True).start()
    os.nice(5)
    torch.set_num_threads(1)
    gc.freeze()
    made = failed = 0
    for number, (name, launch) in enumerate(jobs()):
        if number % parts != part:
            continue
        try:
            with triton.knobs.runtime.scope(), compiling(target) as hits:
                # CPU tensors are taken as in the interpreter; nothing runs on them.
                triton.knobs.runtime.interpret = True
                launch()
            made += len(hits)
        except Exception as error:
            failed += 1
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    print(f"{made} {failed}", flush=True)
    os._exit(0)  # the compiler's own farewell is long


if __name__ == "__main__":
    main()
