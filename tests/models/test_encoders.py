"""What a cache is told by: any weight that encodes pictures, of every model, and none that is trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import reca_fast.models
from reca_fast.config import ModelConfig
from reca_fast.models import Model, open_model
from reca_fast.models.files.pth import TorchWeights
from reca_fast.models.files.read import SafetensorsWeights
from tests.models.subjects import SUBJECTS, Subject

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=SUBJECTS, ids=lambda subject: subject.name)
def subject(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setitem(reca_fast.models.MODELS, request.param.name, request.param.line)
    return request.param


@pytest.fixture
def folder(subject: Subject, tmp_path: Path) -> Path:
    """Its tiny checkpoint."""
    subject.write(tmp_path / "tiny")
    return tmp_path / "tiny"


def opened(subject: Subject, folder: Path) -> Model:
    options = {"precision": "fp32", "freeze_und": subject.freezes[0], **subject.model}
    return open_model(ModelConfig(path=str(folder), **options))


def picture(width: int, height: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_a_cache_outlasts_training(subject, folder, tmp_path) -> None:
    """What is trained encodes nothing, so an exported checkpoint has the encoders of its base."""
    model = opened(subject, folder)
    before = model.identity_of_encoders()
    trained = {name for name, p in model.module.named_parameters() if p.requires_grad}
    changed = {name: lambda base: base + 1 for name in trained if not name.startswith(subject.discarded or ("-",))}
    model.export(tmp_path / "out", changed, None)
    assert opened(subject, tmp_path / "out").identity_of_encoders() == before and before


def test_another_encoder_is_told_from_the_one_that_made_a_cache(subject, folder, monkeypatch) -> None:
    """Whatever tensor of the files changes what becomes of a picture changes the identity as well."""

    def encoded() -> list[Tensor]:
        model = opened(subject, folder)
        model.fill_encoders(torch.device("cpu"))
        target = model.encode_target(seen[1])
        return [*model.encode_condition(seen[0]).values(), *target.values()]

    plain, seen = opened(subject, folder), [picture(56, 56, 0), picture(32, 16, 1)]
    before, identity = encoded(), plain.identity_of_encoders()
    found: set[tuple[Path, str]] = set()
    chosen: list[tuple[Path, str]] = []
    for kind in (SafetensorsWeights, TorchWeights):

        def tensor(self: Any, key: str, region: tuple[slice, ...] = (), own: Any = kind.tensor) -> Tensor:
            found.add((self.path, key))
            read = own(self, key, region)
            return read * 1.5 + 1 if (self.path, key) in chosen else read

        monkeypatch.setattr(kind, "tensor", tensor)
    encoded()
    told = 0
    places = sorted(found)[:: max(1, len(found) // 12)]  # some of each part: all would take half a minute
    for place in places:
        chosen[:] = [place]
        if not all(map(torch.equal, encoded(), before)):
            assert opened(subject, folder).identity_of_encoders() != identity, place
            told += 1
    assert told > len(places) // 3
