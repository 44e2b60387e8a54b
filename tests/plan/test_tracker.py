"""Bytes counted by hand beside those of the tracker, with numbers and without."""

import threading
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import custom_op

from reca_fast.memory.host import host_empty
from reca_fast.plan import MemoryTracker

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=[False, True], ids=["numbers", "fake"])
def tracker(request: pytest.FixtureRequest) -> Iterator[MemoryTracker]:
    with FakeTensorMode() if request.param else nullcontext(), MemoryTracker(rounding=1) as tracker:
        yield tracker


def test_views_count_once_and_memory_ends(tracker: MemoryTracker) -> None:
    x = torch.ones(10, 10)
    assert tracker.now().total == 400
    view = x[2:].t()
    assert tracker.now().total == 400
    del x
    assert tracker.now().total == 400
    del view
    assert tracker.now().total == 0 and tracker.peak().total == 400


def test_the_meta_device_takes_no_memory(tracker: MemoryTracker) -> None:
    x = torch.ones(100, device="meta")
    assert (x + 1).is_meta and tracker.peak().total == 0


def test_what_autograd_keeps_is_held_until_the_backward_pass(tracker: MemoryTracker) -> None:
    x = torch.ones(100, requires_grad=True)
    y = x.exp().sum()  # exp keeps its result
    assert tracker.now().total == 400 + 400 + 4
    y.backward()
    assert tracker.now().total == 400 + 4 + 400  # the gradient, in place of what was kept


def test_a_step_by_category(tracker: MemoryTracker) -> None:
    with tracker.making_as("weights"):
        model = nn.Sequential(nn.Linear(10, 20, bias=False), nn.Linear(20, 10, bias=False)).requires_grad_(True)
        model[0].requires_grad_(False)
    x = torch.ones(5, 10)
    model(x).sum().backward()
    tracker.assign((p.grad for p in model.parameters()), "gradients")
    assert tracker.now().by_category == {
        "weights": 1600,
        "gradients": 800,
        "optimizer": 0,
        "activations": 200,
        "workspace": 0,
    }
    tracker.forget_peak()
    assert tracker.peak() == tracker.now()


def test_what_a_gradient_was_counted_as_is_corrected_in_the_past(tracker: MemoryTracker) -> None:
    weight = nn.Parameter(torch.ones(1000))
    (weight * torch.ones(1000)).sum().backward()
    tracker.assign([weight.grad], "gradients")
    assert tracker.peak().by_category["gradients"] == 4000


def test_a_storage_that_is_resized_counts_at_its_new_size(tracker: MemoryTracker) -> None:
    x = torch.ones(100)
    x.untyped_storage().resize_(0)
    assert tracker.now().total == 0
    x.untyped_storage().resize_(800)
    assert tracker.now().total == tracker.peak().total == 800


def test_host_memory_is_told_from_the_device(tracker: MemoryTracker) -> None:
    arena = host_empty((100,), torch.float32)
    slot = torch.empty(50)
    slot.copy_(arena[:50], non_blocking=True)
    assert tracker.now().total == tracker.peak().total == 200
    assert tracker.now(host=True).total == tracker.peak(host=True).total == 400


def test_a_thread_enters_the_tracker_again(tracker: MemoryTracker) -> None:
    kept: list[torch.Tensor] = []

    def work() -> None:
        with tracker:
            kept.append(torch.ones(100))
            torch.ones(50)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert tracker.now().total == 400 and tracker.peak().total == 600


@custom_op("reca_fast_tests::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@doubled.register_fake
def _(x):
    return torch.empty_like(x)


def test_what_a_custom_operation_gives_back_counts(tracker: MemoryTracker) -> None:
    x = torch.ones(100)
    y = doubled(x)
    assert tracker.now().total == x.nbytes + y.nbytes == 800
    del y
    assert tracker.now().total == 400


def test_small_pieces_are_rounded_up() -> None:
    with MemoryTracker(rounding=512) as tracker:
        kept = torch.ones(()), torch.ones(129)
        assert len(kept) == 2 and tracker.now().total == 512 + 1024
