"""Show-o's loss over its whole vocabulary of 58,498, head included: the authors' way and ours on the same inputs.

    python bench/vocabulary_step.py                        # a micro step of the authors' CLIP run: 6 GB, minutes
    python bench/vocabulary_step.py --size half            # a reconstruction and a conversation
    python bench/vocabulary_step.py --precision bf16       # under autocast; on a GPU

The authors compute logits for every position of every row in fp32, copy a slice for each loss, and take the row of t2i
along although its loss counts 0. Ours gathers the positions that are learned, and never holds all of their logits. Both
begin with the last layer's hidden states and end with the gradients of these and of the head.

Each measurement runs in a fresh process; rounds interleave the two. Times are CPU seconds, on a GPU the device's.
Memory is the most that the process held during the step above what it held before: gradients, logits, copies.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reca_fast.kernels import fused_linear_cross_entropy

RESULT = Path(__file__).resolve().parent / "results" / "vocabulary_step.json"
IGNORED = -100
MASKED = 0.6366
"""Of a target's codes, on average over the authors' schedule."""


@dataclass(frozen=True)
class Sizes:
    """Rows of each kind and their lengths, as the authors pad them."""

    width: int = 2048
    vocabulary: int = 58_498
    recon: int = 2
    mmu: int = 2
    t2i: int = 1
    recon_length: int = 1730
    joint_length: int = 1603  # of mmu and t2i
    codes: int = 1024
    answers: int = 150  # learned tokens of a conversation, of which the authors publish no figure


SIZES = {
    "micro": Sizes(),
    "half": Sizes(recon=1, mmu=1, t2i=0),
    # For trying the harness itself.
    "tiny": Sizes(width=32, vocabulary=515, recon_length=60, joint_length=50, codes=32, answers=9),
}


@dataclass(frozen=True)
class Inputs:
    """What both ways are given; labels are in the authors' shape, IGNORED where nothing is learned."""

    sizes: Sizes
    recon: Tensor  # [recon, recon_length, width]
    joint: Tensor  # [t2i + mmu, joint_length, width], t2i first
    recon_labels: Tensor  # int64 [recon, codes]: of the codes before the last position
    mmu_labels: Tensor  # int64 [mmu, joint_length]: what stands at a position, predicted by the one before
    t2i_labels: Tensor  # int64 [t2i, codes]
    weight: Tensor  # [vocabulary, width]
    bias: Tensor  # [vocabulary]

    def gradients(self) -> dict[str, Tensor]:
        """Those of what the two ways have in common, which are forgotten here."""
        found = {}
        for name in ("recon", "joint", "weight", "bias"):
            tensor = getattr(self, name)
            found[name], tensor.grad = tensor.grad, None
        return found


def make_inputs(sizes: Sizes, device: torch.device) -> Inputs:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=draw)).to(device).requires_grad_()

    def masked(rows: int) -> Tensor:
        labels = torch.randint(sizes.vocabulary, (rows, sizes.codes), generator=draw)
        for row in labels:
            row[torch.randperm(sizes.codes, generator=draw)[round(MASKED * sizes.codes) :]] = IGNORED
        return labels.to(device)

    mmu = torch.full((sizes.mmu, sizes.joint_length), IGNORED)
    mmu[:, -sizes.answers :] = torch.randint(sizes.vocabulary, (sizes.mmu, sizes.answers), generator=draw)
    return Inputs(
        sizes,
        normal(sizes.recon, sizes.recon_length, sizes.width),
        normal(sizes.t2i + sizes.mmu, sizes.joint_length, sizes.width),
        masked(sizes.recon),
        mmu.to(device),
        masked(sizes.t2i),
        normal(sizes.vocabulary, sizes.width, scale=sizes.width**-0.5),
        normal(sizes.vocabulary, scale=0.1),
    )


def authors_loss(inputs: Inputs) -> tuple[Tensor, ...]:
    """The loss, and what the authors' loop holds beside it until the next step: the logits of all positions, in fp32. A
    slice of them is copied for each loss.
    """
    sizes = inputs.sizes
    joint = F.linear(inputs.joint, inputs.weight, inputs.bias).float()
    recon = F.linear(inputs.recon, inputs.weight, inputs.bias).float()
    loss = _copied(recon[:, -1 - sizes.codes : -1], inputs.recon_labels)
    loss = loss + _copied(joint[sizes.t2i :, :-1], inputs.mmu_labels[:, 1:])
    if sizes.t2i:
        loss = loss + 0.0 * _copied(joint[: sizes.t2i, -1 - sizes.codes : -1], inputs.t2i_labels)
    return loss, joint, recon


def _copied(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.contiguous().flatten(0, 1), labels.contiguous().flatten(), ignore_index=IGNORED)


def our_loss(inputs: Inputs) -> tuple[Tensor, ...]:
    """The loss of the positions that are learned, by the fused head and cross-entropy, as `ShowoModel.loss_sums` takes
    it; what counts 0 is left out.
    """
    sizes = inputs.sizes
    recon = inputs.recon[:, -1 - sizes.codes : -1]
    mmu = inputs.joint[sizes.t2i :, :-1]
    loss = torch.zeros((), device=inputs.weight.device)
    for hidden, labels in ((recon, inputs.recon_labels), (mmu, inputs.mmu_labels[:, 1:])):
        learned = labels != IGNORED
        rows, said = hidden[learned], labels[learned].cpu()  # a loader knows them on the host
        total = fused_linear_cross_entropy(rows, inputs.weight, said, bias=inputs.bias, reduction="sum")
        loss = loss + total / len(said)
    return (loss,)


WAYS: dict[str, Callable[[Inputs], tuple[Tensor, ...]]] = {"authors": authors_loss, "ours": our_loss}


def measure(way: str, inputs: Inputs, precision: str, steps: int) -> dict[str, Any]:
    """seconds of each step (the first, which counts memory, left out), the loss, and the bytes above those before."""
    device = inputs.weight.device

    def step() -> float:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss, *_held = WAYS[way](inputs)
        loss.backward()
        value = float(loss.detach())
        inputs.gradients()
        return value

    with _Peak(device) as peak:
        loss = step()
    return {"loss": loss, "peak_bytes": peak.bytes, "seconds": [_seconds(step, device) for _ in range(steps)]}


class _Peak:
    """The most memory that the process held inside the context, above what it held at its beginning."""

    def __init__(self, device: torch.device) -> None:
        self.gpu, self.bytes = device.type == "cuda", 0

    def __enter__(self) -> "_Peak":
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the highest mark begins anew
            self._before = _status("VmRSS")
        return self

    def __exit__(self, *exception: object) -> None:
        self.bytes = (torch.cuda.max_memory_allocated() if self.gpu else _status("VmHWM")) - self._before


def _status(name: str) -> int:
    """Bytes that Linux states of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    start = time.process_time()
    run()
    return time.process_time() - start


def measure_in_subprocess(way: str, args: argparse.Namespace) -> dict[str, Any]:
    """One way in a fresh process; its answer is the last line that it prints.

    Raises:
        RuntimeError: the process failed.
    """
    command = [sys.executable, __file__, "--worker", way, "--size", args.size, "--precision", args.precision]
    command += ["--steps", str(args.steps), "--threads", str(args.threads), "--device", args.device]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{way} failed:\n{done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def summarise(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Medians of each way, and how the two compare: ratios are formed inside each round."""
    ways = {
        way: {
            "loss": rounds[0][way]["loss"],
            "seconds": median(s for each in rounds for s in each[way]["seconds"]),
            "peak_bytes": max(each[way]["peak_bytes"] for each in rounds),
        }
        for way in WAYS
    }
    faster = [median(each["authors"]["seconds"]) / median(each["ours"]["seconds"]) for each in rounds]
    share = ways["ours"]["peak_bytes"] / max(1, ways["authors"]["peak_bytes"])  # at tiny sizes none may show
    return {"ways": ways, "times_faster": median(faster), "share_of_memory": share}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="micro")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="of the arithmetic; weights: fp32"
    )
    parser.add_argument("--rounds", type=int, default=2, help="interleaved rounds, one process a way in each")
    parser.add_argument("--steps", type=int, default=1, help="timed steps of a process")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file (JSON)")
    parser.add_argument("--worker", choices=list(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(args.rounds, args.steps, args.threads) < 1:
        parser.error("rounds, steps and threads must be at least 1")
    torch.set_num_threads(args.threads)
    if args.worker:
        device = torch.device(args.device)
        measure(args.worker, make_inputs(SIZES["tiny"], device), args.precision, 1)  # what torch loads when it is used
        inputs = make_inputs(SIZES[args.size], device)
        print(json.dumps(measure(args.worker, inputs, args.precision, args.steps)))
        return 0
    from bench.environment import environment

    rounds = [{way: measure_in_subprocess(way, args) for way in WAYS} for _ in range(args.rounds)]
    summary = summarise(rounds)
    for way, figures in summary["ways"].items():
        print(f"{way:8} {figures['seconds']:8.3g} s  {figures['peak_bytes'] / 1e9:6.2f} GB  loss {figures['loss']:.6f}")
    print(f"ours is {summary['times_faster']:.2f} times as fast, in {summary['share_of_memory']:.1%} of the memory")
    setting = {name: getattr(args, name) for name in ("size", "precision", "rounds", "steps", "threads", "device")}
    report = {"environment": environment(), "setting": setting | vars(SIZES[args.size]), **summary, "rounds": rounds}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
