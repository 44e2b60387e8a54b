"""Batches that are copied ahead: in the loader's threads, in an order that no copy is read before or overwritten."""

from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch

from reca_fast.data.loader import PackLoader
from reca_fast.train.handover import Handover
from tests.builders import builder_of
from tests.data.packs import PHOTOS, SMALL, as_list, described, loader, saved_by, take


def copying() -> PackLoader:
    """A loader whose copies are the batch once more, reversed."""
    return PackLoader(
        PHOTOS, builder_of(SMALL), SMALL, as_list, range(SMALL.packs_per_step), copy=lambda batch: batch[::-1]
    )


def test_packs_and_places_are_those_of_a_loader_that_copies_nothing() -> None:
    with loader(PHOTOS, SMALL) as plain, copying() as ahead:
        assert described(take(ahead, 3)) == described(take(plain, 3))
        assert saved_by(ahead) == saved_by(plain)
        with copying() as resumed:
            resumed.load_state_dict(saved_by(ahead))
            packs, expected = take(resumed, 3), take(plain, 3)
    assert described(packs) == described(expected)
    assert all(pack.copy == pack.batch[::-1] for pack in packs)


def test_on_a_cpu_there_is_nothing_to_copy() -> None:
    handover, batch = Handover(torch.device("cpu")), cast(Any, object())
    assert handover.copy(batch) is None
    assert handover.take(iter(["packs"])) == "packs"


class Stream:
    def __init__(self, name: str, said: list[str]) -> None:
        self.name, self.said = name, said

    def wait_stream(self, other: "Stream") -> None:
        self.said.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """What is asked of the streams of a GPU that is not there, in order."""
    said: list[str] = []

    @contextmanager
    def current(stream: Stream):
        said.append(f"on {stream.name}")
        yield
        said.append(f"off {stream.name}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copies", said))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("the step", said))
    monkeypatch.setattr(torch.cuda, "stream", current)
    return said


def test_the_device_waits_in_both_directions_and_the_host_in_none(said) -> None:
    class Copied:
        def to(self, device):
            said.append(f"copy to {device}")
            return self

    handover = Handover(torch.device("cuda", 1))
    batch: Any = Copied()
    handover.copy(batch)

    def packs():
        said.append("next step")
        yield "packs"

    assert handover.take(packs()) == "packs"
    assert said == [
        *("on copies", "copy to cuda:1", "off copies"),
        # What the next copies overwrite may still be read by the steps that are queued.
        "copies waits for the step",
        "next step",
        # And the step reads what was copied until now.
        "the step waits for copies",
    ]
