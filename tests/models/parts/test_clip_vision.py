"""The tower computes what transformers' CLIP does, reads its files, and gets the pixels that CLIP's processor makes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPVisionConfig, CLIPVisionModel

from reca_fast.errors import UserError
from reca_fast.models.parts.clip_vision import (
    CLIP_MEAN,
    CLIP_STD,
    ClipVision,
    check_clip_vision,
    empty_clip_vision,
    plain_pixels,
    processed_pixels,
    read_clip_vision,
)
from reca_fast.models.parts.clip_vision_config import CLIP_VIT_L_336, ClipVisionConfig

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 12,
    "patch_size": 4,
}


@pytest.fixture(scope="module")
def theirs() -> CLIPVisionModel:
    torch.manual_seed(0)
    return CLIPVisionModel(CLIPVisionConfig(**SIZES)).eval()


@pytest.fixture
def folder(theirs, tmp_path) -> Path:
    """A public folder: the whole CLIP's file and configuration, as torch.save writes them."""
    state = {
        key if key.startswith("vision_model.") else f"vision_model.{key}": x for key, x in theirs.state_dict().items()
    }
    state |= {"vision_model.embeddings.position_ids": torch.arange(10)[None], "logit_scale": torch.ones(())}
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": SIZES}))
    return tmp_path


def test_features_are_those_of_the_layer_before_the_last(theirs, folder) -> None:
    config = ClipVisionConfig.from_folder(folder)
    assert check_clip_vision(folder) == config and (config.num_patches, config.layers) == (9, 2)
    tower, pixels = read_clip_vision(folder, config), torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        expected = theirs(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        torch.testing.assert_close(tower(pixels), expected, atol=2e-6, rtol=1e-5)


def test_a_layer_that_is_not_used_may_be_missing_another_may_not(folder) -> None:
    state = torch.load(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").unlink()
    used = {key: x for key, x in state.items() if "layers.2." not in key and "post_layernorm" not in key}
    save_file(used, folder / "model.safetensors")
    check_clip_vision(folder)
    save_file({key: x for key, x in used.items() if "layers.1.mlp.fc2.bias" not in key}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"1 missing \(vision_model\.encoder\.layers\.1\.mlp\.fc2\.bias\)"):
        check_clip_vision(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "has quick_gelu"),
        ({"num_attention_heads": 5}, "no multiple of num_attention_heads 5"),
        ({"num_hidden_layers": 1}, "leaves none of the 1 layers"),
        ({"patch_size": 16}, "image_size 12 is less than patch_size 16"),
    ],
)
def test_sizes_that_cannot_be(changes, message, folder) -> None:
    (folder / "config.json").write_text(json.dumps(SIZES | changes))
    with pytest.raises(UserError, match=message):
        read_clip_vision(folder, ClipVisionConfig.from_folder(folder))


def test_the_public_tower_has_this_size(tmp_path) -> None:
    """All but the last of 24 layers, and without the norm behind them."""
    assert ClipVisionConfig.from_folder(tmp_path) == CLIP_VIT_L_336
    with torch.device("meta"):
        tower = ClipVision(CLIP_VIT_L_336)
    layer = sum(p.numel() for p in tower.layers[0].parameters())
    assert sum(p.numel() for p in tower.parameters()) + layer + 2 * 1024 == 303_507_456
    assert CLIP_VIT_L_336.num_patches == 576
    with pytest.raises(UserError, match=r"holds none of model\.safetensors, pytorch_model\.bin"):
        read_clip_vision(tmp_path, CLIP_VIT_L_336)


def test_it_is_made_without_files() -> None:
    tower = empty_clip_vision(ClipVisionConfig(**SIZES), "cpu", torch.bfloat16)
    assert tower(torch.zeros(1, 3, 12, 12)).shape == (1, 9, 32) and tower.pre_norm.weight.dtype is torch.bfloat16


def test_plain_pixels_are_squeezed_without_antialiasing() -> None:
    picture = torch.arange(4 * 8 * 3).view(4, 8, 3).to(torch.uint8)
    pixels = plain_pixels(picture, 2)
    assert pixels.shape == (1, 3, 2, 2)
    # Each of the four averages the two pixels around its middle in each direction, and no more.
    corner = picture[:2, 1:3, 0].float().mean() / 127.5 - 1
    assert pixels[0, 0, 0, 0].item() == pytest.approx(corner.item(), abs=1e-6)


class AsOnGpus(TorchDispatchMode):
    """Refuses what torch cannot do on a GPU: to resize uint8."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._upsample_bicubic2d_aa.default or args[0].is_floating_point()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("size", [(24, 24), (24, 50), (61, 31)])
def test_processed_pixels_are_those_of_clip_s_processor(size) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    side = 24
    short = min(size)
    scaled = Image.fromarray(noise).resize((side * size[1] // short, side * size[0] // short), Image.Resampling.BICUBIC)
    left, top = (scaled.width - side) // 2, (scaled.height - side) // 2
    cut = np.asarray(scaled.crop((left, top, left + side, top + side)), dtype=np.float32) / 255
    expected = torch.from_numpy((cut - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)).permute(
        2, 0, 1
    )[None]
    with AsOnGpus():
        pixels = processed_pixels(torch.from_numpy(noise), side)
    assert (pixels - expected).abs().max() < 2.5 / 255 / min(CLIP_STD)  # a grey level or two: uint8 is rounded between
    assert (pixels - expected).abs().mean() < 1e-3 / min(CLIP_STD)
