"""The VAE against recorded values, its key table at public size, and the packing of latents into tokens."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from reca_fast.data.images import to_model_range
from reca_fast.errors import UserError
from reca_fast.models.bagel.latent_tokens import patchify_latents, unpatchify_latents
from reca_fast.models.bagel.tiny import VAE_FILE, TinyConfig
from reca_fast.models.bagel.tiny.photos import PHOTOS, write_crops
from reca_fast.models.files import open_weights
from reca_fast.models.parts.channels_last import group_norm, to_channels_last
from reca_fast.models.parts.kl_vae import KLVAE, encode_pictures, fill_kl_vae, read_kl_vae, save_kl_vae
from reca_fast.models.parts.kl_vae_config import KLVAEConfig
from reca_fast.models.parts.kl_vae_names import kl_vae_names
from tests.places import BAGEL

CASE = BAGEL / "recorded_pixels"
TINY = KLVAEConfig(ch=32, ch_mult=(1, 1, 2), num_res_blocks=1, z_channels=4)


@pytest.fixture(scope="module")
def tiny() -> KLVAE:
    torch.manual_seed(0)
    return KLVAE(TINY).requires_grad_(False).eval()


def noise_of(vae: KLVAE, pictures: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    draw, cell = torch.Generator().manual_seed(0), vae.downsample
    sizes = [(vae.config.z_channels, picture.shape[0] // cell, picture.shape[1] // cell) for picture in pictures]
    return [torch.randn(size, generator=draw) for size in sizes]


def test_recorded_moments_and_latents() -> None:
    config = KLVAEConfig.from_dict(json.loads((CASE / "config.json").read_text())["vae_config"])
    vae = read_kl_vae(CASE / "ae.safetensors", config)
    inputs, expected = load_file(CASE / "inputs.safetensors"), load_file(CASE / "expected.safetensors")
    moments = vae.moments(inputs["image.0.vae_tensor"][None])
    torch.testing.assert_close(moments, expected["vae_moments"], atol=1e-5, rtol=0)
    latents = vae.sample(moments, inputs["vae_posterior_noise"])
    torch.testing.assert_close(latents, inputs["padded_latent"], atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="only the encoder"):
        vae.decode(latents)


def test_key_table_at_public_size() -> None:
    with torch.device("meta"):
        vae = KLVAE(KLVAEConfig())
    table, state = kl_vae_names(vae.config).keys(vae.state_dict()), vae.state_dict()
    assert len(table) == 244 and sorted(table.values()) == sorted(state)
    assert sum(tensor.numel() for tensor in state.values()) == 83_819_683
    some = {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.down.2.downsample.conv.bias": (512,),
        "encoder.mid.attn_1.q.weight": (512, 512),
        "encoder.conv_out.weight": (32, 512, 3, 3),
        "decoder.conv_in.weight": (512, 16, 3, 3),
        "decoder.up.0.block.2.conv2.weight": (128, 128, 3, 3),
        "decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "decoder.mid.attn_1.proj_out.bias": (512,),
        "decoder.norm_out.weight": (128,),
    }
    assert {key: tuple(state[table[key]].shape) for key in some} == some
    assert not {"encoder.down.3.downsample.conv.weight", "decoder.up.0.upsample.conv.weight"} & table.keys()


HARMON = KLVAEConfig(
    ch_mult=(1, 1, 2, 2, 4), scale_factor=0.2325, shift_factor=0.0, encoder_attention=True, quant_convs=True
)
"""The KL-16 VAE of MAR and Harmon."""


def test_the_vae_of_mar_and_harmon() -> None:
    """Other attention, two more convolutions, other names: the numbers of its public file."""
    with torch.device("meta"):
        vae = KLVAE(HARMON)
    state = vae.state_dict()
    names = kl_vae_names(HARMON)
    keys = names.keys(state)
    assert len(keys) == 312 and vae.downsample == 16
    encoder = sum(x.numel() for name, x in state.items() if name.startswith(("encoder.", "quant_conv.")))
    assert encoder == 28_266_816 and sum(x.numel() for x in state.values()) - encoder == 38_189_203
    some = {
        "encoder.down.4.attn.1.q.weight": (512, 512, 1, 1),
        "encoder.down.4.block.0.nin_shortcut.weight": (512, 256, 1, 1),
        "decoder.up.1.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "quant_conv.weight": (32, 32, 1, 1),
        "post_quant_conv.bias": (16,),
    }
    assert {key: names.stored_shape(keys[key], state[keys[key]].shape) for key in some} == some


def test_quant_convs_are_applied() -> None:
    """They turn the moments round, and what is decoded round again: with signs flipped in both, pictures stay."""
    sizes = {"ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1, "z_channels": 2}
    torch.manual_seed(0)
    plain, turned = KLVAE(KLVAEConfig(**sizes)), KLVAE(KLVAEConfig(**sizes, quant_convs=True))
    turned.load_state_dict(plain.state_dict(), strict=False)
    for conv, channels in ((turned.quant_conv, 4), (turned.post_quant_conv, 2)):
        assert conv is not None
        conv.weight.data, conv.bias.data = -torch.eye(channels)[..., None, None], torch.zeros(channels)
    pixels = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(turned.moments(pixels), -plain.moments(pixels))
    shift = KLVAEConfig().shift_factor
    z = torch.randn(1, 2, 4, 4)
    latents, mirrored = (KLVAEConfig().scale_factor * (each - shift) for each in (z, -z))
    torch.testing.assert_close(turned.decode(latents), plain.decode(mirrored))


def test_a_vae_inside_a_larger_file(tiny: KLVAE, tmp_path: Path) -> None:
    save_kl_vae(tiny, tmp_path / "alone.safetensors")
    tensors = {f"vae.{key}": x for key, x in load_file(tmp_path / "alone.safetensors").items()}
    save_file(tensors | {"llm.weight": torch.zeros(1)}, tmp_path / "whole.safetensors")
    with open_weights(tmp_path / "whole.safetensors") as weights:
        again = fill_kl_vae(weights, TINY, "cpu", torch.float32, under="vae.")
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in tiny.state_dict().items())
    assert not again.training and not any(p.requires_grad for p in again.parameters())


def test_what_is_saved_is_read_back(tiny: KLVAE, tmp_path: Path) -> None:
    save_kl_vae(tiny, tmp_path / "ae.safetensors")
    assert list(load_file(tmp_path / "ae.safetensors")["decoder.mid.attn_1.q.weight"].shape) == [64, 64, 1, 1]
    again = read_kl_vae(tmp_path / "ae.safetensors", TINY)
    pixels = torch.rand(1, 3, 16, 24) * 2 - 1
    moments = tiny.moments(pixels)
    assert moments.shape == (1, 8, 4, 6) and torch.equal(moments, again.moments(pixels))
    latents = tiny.sample(moments, torch.zeros(1, 4, 4, 6))
    assert tiny.decode(latents).shape == pixels.shape and torch.equal(tiny.decode(latents), again.decode(latents))


def test_sample_and_decode_undo_each_others_scaling(tiny: KLVAE) -> None:
    mean = torch.randn(1, 4, 4, 4)
    latents = tiny.sample(torch.cat((mean, torch.full_like(mean, -80.0)), 1), torch.ones_like(mean))
    torch.testing.assert_close(latents, 0.3611 * (mean - 0.1159))
    assert tiny.decoder is not None
    torch.testing.assert_close(tiny.decode(latents), tiny.decoder(mean))


def test_faulty_files_are_named(tiny: KLVAE, tmp_path: Path) -> None:
    path = tmp_path / "ae.safetensors"
    with pytest.raises(UserError, match="is missing"):
        read_kl_vae(path, TINY)
    save_kl_vae(tiny, path)
    tensors = load_file(path)
    del tensors["encoder.conv_in.bias"]
    tensors["encoder.extra.bias"] = torch.zeros(1)
    tensors["decoder.conv_in.bias"] = torch.zeros(3)
    save_file(tensors, path)
    with pytest.raises(UserError) as fault:
        read_kl_vae(path, TINY)
    assert "1 missing (encoder.conv_in.bias)" in str(fault.value)
    assert "1 unexpected (encoder.extra.bias)" in str(fault.value)
    assert "1 misshapen (decoder.conv_in.bias [3] instead of [64])" in str(fault.value)
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_kl_vae(path, TINY)


def test_a_config_survives_as_a_dict_and_refuses_contradictions() -> None:
    assert KLVAEConfig.from_dict(TINY.to_dict()) == TINY and KLVAEConfig.from_dict({}) == KLVAEConfig()
    with pytest.raises(UserError, match="Did you mean 'z_channels'"):
        KLVAEConfig.from_dict({"z_channel": 4})
    with pytest.raises(UserError, match="downsample 8 contradicts"):
        KLVAEConfig.from_dict({"ch_mult": [1, 2], "downsample": 8})


def test_patchify_and_its_inverse() -> None:
    latents = torch.arange(3 * 4 * 6).view(3, 4, 6)
    tokens = patchify_latents(latents, 2)
    assert tokens.shape == (2 * 3, 12)
    for row, col, a, b, c in ((0, 0, 0, 1, 2), (1, 2, 1, 0, 1), (0, 1, 1, 1, 0)):
        assert tokens[row * 3 + col, (a * 2 + b) * 3 + c] == latents[c, row * 2 + a, col * 2 + b]
    assert torch.equal(unpatchify_latents(tokens, 2, 3, 2, 3), latents)


def test_a_picture_is_encoded_alone(tiny: KLVAE) -> None:
    sizes = ((16, 16), (16, 24), (16, 16), (32, 16), (16, 16))
    pictures = [torch.randint(0, 256, (*size, 3), dtype=torch.uint8) for size in sizes]
    noise = noise_of(tiny, pictures)
    together = encode_pictures(tiny, pictures, noise)
    for picture, draw, latents in zip(pictures, noise, together, strict=True):
        assert torch.equal(latents, encode_pictures(tiny, [picture], [draw])[0])
        moments = tiny.moments(to_model_range(picture)[None])
        torch.testing.assert_close(latents, tiny.sample(moments, draw[None])[0], atol=1e-5, rtol=0)


def test_demo_photos_and_the_vae_that_was_trained_on_them(tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="the demo's photographs come with scikit-image")
    assert not set(PHOTOS["train"]) & set(PHOTOS["held_out"])
    paths = write_crops(tmp_path / "a", "held_out", 16, seed=3)
    again = write_crops(tmp_path / "b", "held_out", 16, seed=3)
    assert [path.name for path in paths] == [path.name for path in again] and len(set(paths)) == 16
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(paths, again, strict=True))
    assert paths[0].name.startswith("0000_chelsea_x") and paths[1].name.startswith("0001_coffee_x")

    pictures = [torch.from_numpy(np.array(Image.open(path))) for path in paths]
    assert {tuple(picture.shape) for picture in pictures} == {(64, 64, 3)}
    vae = read_kl_vae(VAE_FILE, TinyConfig().vae)
    latents = torch.stack(encode_pictures(vae, pictures, noise_of(vae, pictures)))
    assert 0.7 < latents.std() < 1.3 and abs(latents.mean()) < 0.3
    seen = (vae.decode(latents).clamp(-1, 1) + 1) / 2
    truth = torch.stack(pictures).permute(0, 3, 1, 2) / 255
    psnr = -10 * (seen - truth).square().mean(dim=(1, 2, 3)).log10()
    assert psnr.mean() > 25


# Channels last, as on a GPU


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_group_norm_with_channels_last(dtype) -> None:
    """torch's values, also where the mean is far from zero, in the other layout."""
    draw = torch.Generator().manual_seed(0)
    x = (torch.randn(2, 24, 5, 7, generator=draw, dtype=torch.float64) + 50).to(dtype)
    weight, bias = (torch.randn(24, generator=draw, dtype=torch.float64).to(dtype) for _ in range(2))
    expected = F.group_norm(x.double(), 6, weight.double(), bias.double(), 1e-6)
    got = group_norm(channels_last(x), 6, weight, bias, 1e-6)
    assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol={2: 0.1, 4: 1e-4, 8: 1e-10}[dtype.itemsize])


def test_channels_last_changes_the_layout_and_no_value(tiny) -> None:
    """The same moments, latents and pictures; nothing between the first and the last convolution turns back."""
    vae, turned = copy.deepcopy(tiny).double(), copy.deepcopy(tiny).double()
    to_channels_last(turned)
    layouts = []
    for module in turned.modules():
        if isinstance(module, nn.Conv2d | nn.GroupNorm):
            module.register_forward_hook(lambda _, inputs, out: layouts.append((inputs[0], out)))
    pixels = torch.rand(2, 32, 16, 3, generator=torch.Generator().manual_seed(0)).permute(0, 3, 1, 2) * 2 - 1
    moments = turned.moments(pixels)
    torch.testing.assert_close(moments, vae.moments(pixels), rtol=1e-5, atol=1e-5)
    latents = vae.sample(moments, torch.zeros(2, 4, 8, 4))
    torch.testing.assert_close(turned.decode(latents), vae.decode(latents), rtol=1e-5, atol=1e-5)
    pictures = [torch.randint(0, 256, (32, 16, 3), dtype=torch.uint8) for _ in range(2)]
    noise = noise_of(vae, pictures)
    tokens = [patchify_latents(z) for z in encode_pictures(turned, pictures, noise)]
    for ours, theirs in zip(tokens, encode_pictures(vae, pictures, noise), strict=True):
        torch.testing.assert_close(ours, patchify_latents(theirs), rtol=1e-5, atol=1e-5)
    wide = [x for pair in layouts for x in pair if x.dim() == 4 and x.shape[1] > 4]
    assert len(wide) > 40 and all(x.is_contiguous(memory_format=torch.channels_last) for x in wide)
