"""What a block keeps waits in host memory: the same gradients, less on the device, no allocation after the start."""

import threading

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from reca_fast.config import MemoryConfig
from reca_fast.memory import keep_on_host, watch_host_memory
from tests.memory.steps import batch_of, levered
from tests.memory.test_recompute import Made

pytestmark = pytest.mark.usefixtures("one_thread")


def steps(folder, recompute: str, *, on_host: bool, **options) -> tuple[dict[str, Tensor], int, list[list[int]]]:
    """Gradients of the last of three steps, bytes on the device between its two passes, and host memory allocated in
    each step.
    """
    model = levered(folder, MemoryConfig(recompute=recompute), **options)
    if on_host:
        keep_on_host(model.blocks(), smallest=64)
    batch = model.encode(batch_of(model))
    allocated: list[list[int]] = []
    homes: set[StorageWeakRef] = set()
    for _ in range(3):
        model.module.zero_grad()
        allocated.append([])

        def note(tensor: Tensor, sizes: list[int] = allocated[-1]) -> None:
            sizes.append(tensor.nbytes)
            homes.add(StorageWeakRef(tensor.untyped_storage()))

        with watch_host_memory(note):
            with Made() as made:
                loss = torch.stack(list(model.loss_sums(batch).values())).sum()
            for home in homes:
                made.sizes.pop(home, None)
            left = made.alive()
            loss.backward()
    return {n: p.grad for n, p in model.module.named_parameters() if p.grad is not None}, left, allocated


@pytest.mark.parametrize("recompute", ["none", "blocks", "selective"])
@pytest.mark.parametrize("freeze_und", [True, False], ids=["reca", "joint"])
def test_gradients_stay_bit_for_bit_and_memory_is_used_again(tiny_folder, recompute, freeze_und):
    here, on_device, none = steps(tiny_folder, recompute, on_host=False, freeze_und=freeze_und)
    there, left, allocated = steps(tiny_folder, recompute, on_host=True, freeze_und=freeze_und)
    assert here.keys() == there.keys()
    assert all(gradient.any() and torch.equal(there[name], gradient) for name, gradient in here.items())
    first, *later = allocated
    assert len(first) == 2 and later == [[], []] and none == [[], [], []]
    assert left < on_device - 0.9 * first[0]  # one of the two blocks is away; the last one stays until it is used


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor, shared: Tensor) -> Tensor:
        return x + (self.inner(x) * shared).tanh()


def stack() -> tuple[nn.ModuleList, Tensor]:
    torch.manual_seed(0)
    return nn.ModuleList(Layer() for _ in range(4)), torch.randn(16, 8)


def test_a_run_brings_the_one_that_was_needed_after_it_the_last_time(monkeypatch):
    """Two packs go block by block, each in a thread of its own, and back in the order in which they came."""
    from reca_fast.memory import offload

    blocks, shared = stack()
    plain, _ = stack()
    keep_on_host(blocks, smallest=64)
    brought: list[int] = []
    bring = offload._Run.bring

    def note(run) -> None:
        if any(piece.on_device is None for piece in run.pieces()):
            brought.append(run.place)
        bring(run)

    monkeypatch.setattr(offload._Run, "bring", note)

    def in_a_thread(function, *args):
        out: list[Tensor] = []
        thread = threading.Thread(target=lambda: out.append(function(*args)))
        thread.start()
        thread.join()
        return out[0]

    for step in range(2):
        brought.clear()
        packs = [[torch.randn(16, 8, requires_grad=True)] for _ in range(2)]
        results: list[list[Tensor]] = [[], []]
        for block in blocks:
            for x, out in zip(packs, results, strict=True):
                out.append(in_a_thread(block, x[-1], shared))
                x.append(out[-1].detach().requires_grad_())
        assert brought == []
        needed = []
        gradients: list[Tensor | None] = [torch.ones(16, 8), torch.ones(16, 8)]
        for number in reversed(range(4)):
            for pack in range(2):
                needed.append(2 * number + pack)
                results[pack][number].backward(gradients[pack])
                gradients[pack] = packs[pack][number].grad
        assert sorted(brought) == list(range(7)), "the run that went last never left"
        if step:
            assert brought == [x for x in needed if x != 7], "each is brought once, in the order of need"
    for (first, *_), _ in zip(packs, results, strict=True):
        start = first.detach().requires_grad_()
        last = start
        for block in plain:
            last = block(last, shared)
        last.sum().backward()
        assert start.grad is not None and first.grad is not None and torch.equal(start.grad, first.grad)


def test_shared_inputs_weights_and_small_tensors_stay():
    blocks, shared = stack()
    keep_on_host(blocks, smallest=64)
    sizes: list[int] = []
    with watch_host_memory(lambda tensor: sizes.append(tensor.nbytes)):
        x = torch.randn(16, 8, requires_grad=True)
        for block in blocks:
            x = block(x, shared)
    rows = 16 * 8 * 4
    assert sizes == [2 * rows] * 4, "its input and the tangent; neither weights nor what all share"
