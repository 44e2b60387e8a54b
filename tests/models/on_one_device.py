"""Every model's step computes on the device of its batch and its weights, and on no other.

No GPU is needed to see it. The device here has a name and no memory: tensors on it are fake, and an operation that
meets a tensor of the CPU besides is an error, as it would be on a GPU. `test_devices.py` runs this file in a process of
its own: a process keeps such a device, and much of torch then asks it for what it does not have.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration

from reca_fast.config import ModelConfig, SamplingConfig
from reca_fast.models import Model, editor, open_model
from reca_fast.models.files import uniform
from reca_fast.randomness import draw_of_pack
from reca_fast.sample import I2T, RECA, T2I
from tests.models.subjects import SUBJECTS, Subject
from tests.models.test_contract import samples_of

SET_UP: Any = backend_registration._setup_privateuseone_for_python_backend
pytestmark = pytest.mark.usefixtures("one_thread")
ELSEWHERE = "elsewhere"


@pytest.fixture(scope="module", autouse=True)
def device() -> Iterator[None]:
    """Autocast, which the loss of some models enters, does nothing there."""

    class Module(backend_registration._DummyBackendModule):
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16, torch.float32]

    SET_UP(ELSEWHERE, Module())
    library = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    library.fallback(torch.library.fallthrough_kernel)
    yield
    library._destroy()


class Moving(TorchFunctionMode):
    """What is copied or made there becomes fake on its way."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode = mode

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leads_there = any(
            str(value).startswith(ELSEWHERE) for value in (*args[1:], *kwargs.values()) if is_device(value)
        )
        if leads_there and func is torch.Tensor.to and not isinstance(args[0], FakeTensor):
            args = (self.mode.from_tensor(args[0]), *args[1:])
        if leads_there and func is torch.tensor:
            with torch._C.DisableTorchFunction():
                made = torch.tensor(*args, **kwargs | {"device": "cpu"})
            return self.mode.from_tensor(made).to(kwargs["device"])
        if (leads_there and "device" in kwargs) or any(isinstance(x, FakeTensor) for x in (*args, *kwargs.values())):
            with self.mode:
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def is_device(value: object) -> bool:
    return isinstance(value, str | torch.device)


@contextmanager
def fakes() -> Iterator[FakeTensorMode]:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, Moving(mode):
        yield mode


@pytest.fixture(scope="module", params=SUBJECTS, ids=lambda subject: subject.name)
def subject(request: pytest.FixtureRequest) -> Subject:
    if request.param.name == "toy":
        pytest.skip("the toy reads its file whenever it is filled")
    return request.param


@pytest.fixture(scope="module")
def opened(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    subject.write(folder)

    def model(**options: Any) -> Model:
        settings = {"freeze_und": subject.freezes[0], "attention": "eager", "kernels": "reference", **subject.model}
        return open_model(ModelConfig(path=str(folder), **settings | options))

    return model


def test_a_step_meets_one_device(subject, opened) -> None:
    model = opened(precision="fp32")
    tasks = [(task,) for task in subject.tasks if task != I2T or not subject.freezes[0]]
    batch = model.inputs(subject.data).collate(samples_of(model, subject, *tasks, *tasks), draw_of_pack(0, 0, 0))
    with fakes():
        model.fill_empty(uniform(torch.float32, ELSEWHERE))
        losses = model.loss_sums(model.encode(batch.to(ELSEWHERE)))
        torch.stack(list(losses.values())).sum().backward()
    assert {task for (task,) in tasks} <= losses.keys()
    assert {each.device.type for each in losses.values()} == {ELSEWHERE}
    trained = {name: p for name, p in model.module.named_parameters() if p.requires_grad}
    assert {name for name, p in trained.items() if p.grad is None or p.grad.device.type != ELSEWHERE} == set()


@pytest.mark.parametrize("with_condition", [True, False])
def test_drawing_meets_one_device(subject, opened, with_condition) -> None:
    """What is drawn on the host (layouts, random numbers) stays real, so that its numbers can be read."""
    if not with_condition and T2I not in subject.tasks:
        pytest.skip("it draws nothing from a text")
    model = opened(precision="fp32")
    with fakes() as mode:
        model.fill_empty(uniform(torch.float32, ELSEWHERE))
    (sample,) = samples_of(model, subject, (RECA,))
    if not with_condition:
        sample = replace(sample, tasks=(T2I,), condition=None, target=None)
    with Moving(mode):
        sampling = SamplingConfig(steps=subject.steps, together=2)
        drawn = model.sample([sample] * 3, [(32, 16)] * 3, sampling, range(3))  # two at once, and one
    assert [(tuple(each.shape), each.device.type) for each in drawn] == [((16, 32, 3), "cpu")] * 3


def test_editing_meets_one_device(subject, opened) -> None:
    model = opened(precision="fp32")
    if not hasattr(model, "edit"):
        pytest.skip("it edits no pictures")
    with fakes() as mode:
        model.fill_empty(uniform(torch.float32, ELSEWHERE))
    picture = torch.zeros(40, 60, 3, dtype=torch.uint8)
    with Moving(mode):
        drawn = editor(model).edit([picture], ["make it red"], SamplingConfig(steps=subject.steps), [1])
    width, height = editor(model).edited_size((60, 40))
    assert [(tuple(each.shape), each.device.type) for each in drawn] == [((height, width, 3), "cpu")]


def test_the_device_tells_what_stands_beside_it() -> None:
    with fakes(), pytest.raises(RuntimeError, match="devices"):
        torch.zeros(2, device=ELSEWHERE) + torch.zeros(2)
