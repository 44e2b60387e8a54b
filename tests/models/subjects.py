"""The models that the contract is asked of (`test_contract.py`), and all that its tests need to know of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from reca_fast.config import AuxiliaryConfig, DataConfig, ResizeConfig
from reca_fast.models import Model
from reca_fast.models.auxiliary import AuxiliaryModel
from reca_fast.models.auxiliary.tiny import write_tiny_vlm
from reca_fast.models.bagel import BagelModel
from reca_fast.models.bagel.tiny import write_tiny_checkpoint
from reca_fast.models.harmon import HarmonModel
from reca_fast.models.harmon.tiny import write_tiny_checkpoint as write_tiny_harmon
from reca_fast.models.openuni import OpenUniModel
from reca_fast.models.openuni.tiny import write_tiny_checkpoint as write_tiny_openuni
from reca_fast.models.showo import ShowoModel
from reca_fast.models.showo.tiny import write_tiny_checkpoint as write_tiny_showo
from reca_fast.sample import I2T, RECA, T2I, TASKS
from tests.models.toy import ToyModel, write_toy_checkpoint

SIZES = DataConfig(condition_resize=ResizeConfig(56, 56, 14), target_resize=ResizeConfig(32, 16, 8))


@dataclass(frozen=True)
class Subject:
    """A model under test, and all that its tests need to know of it."""

    name: str
    line: str  # in MODELS
    kind: type[Model]  # its class: here the type checker compares every method with the protocol's
    write: Callable[[Path], object]  # writes its tiny checkpoint to a folder that is not there yet
    tasks: tuple[str, ...]  # that it can learn
    published: str  # one of the names in PUBLISHED
    drawn_side: int = 512  # of the published one; 0 where it draws nothing from texts
    data: DataConfig = field(default_factory=lambda: SIZES)  # with sizes of pictures that the tiny checkpoint takes
    freezes: tuple[bool, ...] = (True, False)  # values of model.freeze_und under which it can be trained
    decays_vectors: bool = False  # whether its authors let norms decay
    draws: bool = True  # whether a step of it takes random numbers
    draws_together: bool = True  # whether it follows sampling.together
    discarded: tuple[str, ...] = ()  # beginnings of names of trained weights that no checkpoint folder holds
    model: Mapping[str, Any] = field(default_factory=dict)  # settings of ModelConfig that keep it tiny
    options: tuple[str, ...] = ()  # of the command line, for the sizes of `data` and the settings in `model`

    published_condition: ResizeConfig | None = None  # size that the published one takes, where it does not take 56 x 56

    @property
    def steps(self) -> int | None:
        """Steps of drawing, few; None where it draws without any."""
        return 2 if "steps" in {entry.name for entry in fields(self.kind.SAMPLING)} else None

    @property
    def second(self) -> str:
        """A task that it learns beside reca."""
        return T2I if T2I in self.tasks else I2T


write_tiny_bagel = partial(
    write_tiny_checkpoint, hidden_size=64, intermediate_size=96, layers=2, vit_hidden_size=48, text_vocab=300
)
SUBJECTS = [
    Subject("bagel", "reca_fast.models.bagel:BagelModel", BagelModel, write_tiny_bagel, TASKS, "BAGEL-7B-MoT", 1024),
    Subject(
        *("openuni", "reca_fast.models.openuni:OpenUniModel", OpenUniModel),
        *(partial(write_tiny_openuni, stage=2, layers=2, sana_layers=2), (RECA, T2I), "OpenUni-L-512"),
        freezes=(True,),
    ),
    Subject(
        *("showo", "reca_fast.models.showo:ShowoModel", ShowoModel),
        *(partial(write_tiny_showo, clip=True, layers=2), TASKS, "Show-o-CLIP-512"),
        freezes=(False,),
        decays_vectors=True,
    ),
    Subject(
        *("auxiliary", "reca_fast.models.auxiliary:AuxiliaryModel", AuxiliaryModel),
        *(partial(write_tiny_vlm, side=56, hidden_size=32), (RECA, I2T), "LLaVA-1.5-7B", 0),
        data=DataConfig(
            condition_resize=ResizeConfig(56, 56, 14, fit="squash"), target_resize=ResizeConfig(32, 16, 8, fit="squash")
        ),
        model={"auxiliary": AuxiliaryConfig(decoder_size=0.05)},
        options=(
            *("--data.condition_resize.fit", "squash", "--data.target_resize.fit", "squash"),
            *("--model.auxiliary.decoder_size", "0.05"),
        ),
        freezes=(False,),
        published_condition=ResizeConfig(336, 336, 14, fit="squash"),
        draws=False,
        discarded=("decoder.",),
    ),
    Subject(
        *("harmon", "reca_fast.models.harmon:HarmonModel", HarmonModel),
        partial(write_tiny_harmon, head=False, hidden_size=48, intermediate_size=64, mar_width=32),
        *(TASKS, "Harmon-1.5B"),
        data=DataConfig(condition_resize=ResizeConfig(56, 56, 8), target_resize=ResizeConfig(32, 16, 8)),
        options=("--data.condition_resize.stride", "8"),
        freezes=(False,),
        published_condition=ResizeConfig(64, 64, 16),
    ),
    Subject(
        *("toy", "tests.models.toy:ToyModel", ToyModel, write_toy_checkpoint, (RECA, T2I), "toy-1m", 16),
        draws_together=False,
    ),
]
