"""The packed tower computes what transformers' SigLIP does, picture by picture, and reads its files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

from reca_fast.kernels import Varlen
from reca_fast.models.files import fill, open_weights, uniform
from reca_fast.models.parts.siglip import SIGLIP_NAMES, SiglipNaViT
from reca_fast.models.parts.siglip_config import SiglipConfig

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = SiglipConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=56, patch_size=14
)


@pytest.fixture(scope="module")
def theirs() -> SiglipVisionModel:
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
        vision_use_head=False,
    )
    return SiglipVisionModel(config).eval()


def as_matrix(kernel: Tensor) -> Tensor:
    """The patch embedding's convolution [width, 3, p, p] as a matrix over features (row, column, colour)."""
    return kernel.permute(0, 2, 3, 1).flatten(1).contiguous()


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory) -> SiglipNaViT:
    """Filled from a file with transformers' names."""
    path = Path(tmp_path_factory.mktemp("siglip") / "vit.safetensors")
    state = {key: x for key, x in theirs.state_dict().items() if "position_ids" not in key}
    prefix = "" if any(key.startswith("vision_model.") for key in state) else "vision_model."
    state = {prefix + key: x for key, x in state.items()}
    patch = "vision_model.embeddings.patch_embedding.weight"
    save_file(state | {patch: as_matrix(state[patch])}, path)
    with torch.device("meta"):
        vit = SiglipNaViT(CONFIG).requires_grad_(False)
    with open_weights(path) as weights:
        fill(vit, weights, uniform(torch.float32, "cpu"), SIGLIP_NAMES)
    return vit.eval()


def patches(picture: Tensor) -> Tensor:
    """[3, H, W] -> [patches, 14 * 14 * 3]."""
    channels, height, width = picture.shape
    grid = picture.view(channels, height // 14, 14, width // 14, 14)
    return grid.permute(1, 3, 2, 4, 0).reshape(-1, 14 * 14 * 3)


@torch.no_grad()
def test_whole_pictures_as_transformers_sees_them(theirs, ours) -> None:
    pictures = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(1)) * 2 - 1
    packed = torch.cat([patches(picture) for picture in pictures])
    segments = Varlen.from_lengths([16, 16], [16, 16], causal=False)
    features = ours(packed, torch.arange(16).repeat(2), segments, "sdpa")
    torch.testing.assert_close(features.view(2, 16, 32), theirs(pictures).last_hidden_state, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_pictures_do_not_see_each_other(ours) -> None:
    draw = torch.Generator().manual_seed(2)
    small, large = (torch.randn(n, 588, generator=draw) for n in (4, 12))
    small_ids, large_ids = torch.tensor([0, 1, 4, 5]), torch.arange(12)

    def features(parts: list[Tensor], ids: list[Tensor]) -> Tensor:
        lengths = [len(part) for part in parts]
        segments = Varlen.from_lengths(lengths, lengths, causal=False)
        return ours(torch.cat(parts), torch.cat(ids), segments, "sdpa")

    together = features([small, large], [small_ids, large_ids])
    torch.testing.assert_close(together[:4], features([small], [small_ids]))
    torch.testing.assert_close(together[4:], features([large], [large_ids]))


def test_fewer_layers_than_the_configuration_states() -> None:
    with torch.device("meta"):
        assert len(SiglipNaViT(CONFIG, 2).encoder.layers) == 2
        assert len(SiglipNaViT(CONFIG).encoder.layers) == 3


def test_impossible_sizes_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="hidden_size 32 is no multiple of num_attention_heads 5"):
        SiglipConfig(32, 48, 3, 5, 56)
    with pytest.raises(ValueError, match="hidden_act is 'relu'; a SigLIP vision tower has gelu_pytorch_tanh"):
        SiglipConfig(32, 48, 3, 4, 56, hidden_act="relu")
