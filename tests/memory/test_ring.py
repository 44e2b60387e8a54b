"""What lives on the host visits the device, and what changed there goes home."""

import weakref

import pytest
import torch
from torch import Tensor, nn

from reca_fast.memory import HostWeights, Layout, Ring, on_host, swapped, watch_host_memory

CPU = torch.device("cpu")
BLOCKS = [[Layout(torch.Size((3, 5)), torch.bfloat16), Layout(torch.Size((7,)), torch.float32)]] * 4


def filled() -> Ring:
    ring = Ring(BLOCKS, CPU)
    for number in range(4):
        ring.send(number, [torch.full((3, 5), float(number)), torch.arange(7.0) + number])
    return ring


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (0, 0, 3, 1, 3), (2,)])
def test_every_block_arrives_whole_whatever_the_order(order: tuple[int, ...]) -> None:
    ring = filled()
    for at, number in enumerate(order):
        then = order[at + 1] if at + 1 < len(order) else -1
        with ring.use(number, then=then) as (matrix, vector):
            assert matrix.dtype == torch.bfloat16 and torch.equal(matrix, torch.full_like(matrix, number))
            assert torch.equal(vector, torch.arange(7.0) + number)


def test_two_blocks_are_on_the_device_however_many_there_are() -> None:
    one_block = 256 * 2  # both tensors, each at a multiple of 256 bytes
    ring = filled()
    assert sum(slot.nbytes for slot in ring._slots) == 2 * one_block


def test_changes_go_home_only_where_they_are_announced() -> None:
    ring = filled()
    for changed in (False, True):
        with ring.use(1, changed=changed) as (_, vector):
            vector.add_(100.0)
        ring.settle()
        home = ring.home(1)[1]
        assert torch.equal(home, torch.arange(7.0) + 1 + (200 if changed else 0))  # the slot kept the first sum


def test_what_is_sent_replaces_a_copy_on_the_device() -> None:
    ring = filled()
    with ring.use(2):
        pass
    ring.send(2, [torch.zeros(3, 5), torch.zeros(7)])
    with ring.use(2) as tensors:
        assert not any(t.any() for t in tensors)


def test_what_was_sent_last_is_there_until_its_copy_is_waited_for() -> None:
    ring = filled()
    gradients = {number: [torch.zeros(3, 5, dtype=torch.bfloat16), torch.zeros(7)] for number in range(3)}
    there = {number: [weakref.ref(t) for t in tensors] for number, tensors in gradients.items()}

    def alive() -> list[int]:
        return [number for number, known in there.items() if any(ref() is not None for ref in known)]

    for number in (2, 1, 0):
        ring.send(number, gradients.pop(number))
        assert alive() == [*range(number + 1)]  # of those sent, the last
    with ring.use(0):
        assert alive() == []


def test_weights_are_at_home_between_uses_and_take_their_place_in_the_arena() -> None:
    blocks = [nn.Linear(4, 4) for _ in range(3)]
    before = [block.weight.detach().clone() for block in blocks]
    arenas: list[Tensor] = []
    with watch_host_memory(arenas.append):
        weights = HostWeights([list(block.parameters()) for block in blocks], CPU)
    (arena,) = arenas
    for number, block in enumerate(blocks):
        assert block.weight.untyped_storage().data_ptr() == arena.untyped_storage().data_ptr()
        with weights.use(number, then=number + 1, changed=True):
            assert block.weight.untyped_storage().data_ptr() != arena.untyped_storage().data_ptr()
            block.weight.data.mul_(2)
    weights.settle()
    assert all(torch.equal(block.weight, 2 * old) for block, old in zip(blocks, before, strict=True))


def test_a_share_of_the_blocks_is_spread_evenly() -> None:
    assert [sorted(swapped(8, share)) for share in (0, 0.25, 0.5, 1)] == [[], [2, 6], [1, 3, 5, 7], list(range(8))]
    assert all(len(swapped(28, n / 28)) == n for n in range(29))


def test_a_block_s_parameters_are_told_apart_by_whether_they_are_trained() -> None:
    block = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2).requires_grad_(False)})
    assert [len(on_host([block], trained=trained)[0]) for trained in (True, False)] == [2, 2]
    assert on_host([block], trained=True)[0][0] is block["a"].weight
