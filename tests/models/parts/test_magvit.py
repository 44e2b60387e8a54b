"""The tokenizer against an independent implementation of the same convolutions, its codes, its sizes and its files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reca_fast.errors import UserError
from reca_fast.models.files import open_weights
from reca_fast.models.parts.kl_vae import KLVAE
from reca_fast.models.parts.kl_vae_config import KLVAEConfig
from reca_fast.models.parts.kl_vae_names import kl_vae_names
from reca_fast.models.parts.magvit import (
    Decoder,
    Encoder,
    Magvit,
    check_magvit,
    codes_of,
    empty_magvit,
    fill_magvit,
    picture_codes,
    read_magvit,
    signs_of,
)
from reca_fast.models.parts.magvit_config import MAGVIT_V2, MagvitConfig, MagvitHalf

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = MagvitConfig(code_bits=4, width=32, encoder=MagvitHalf((32, 64), (1, 2)), decoder=MagvitHalf((64, 32), (2, 1)))


@pytest.fixture(scope="module")
def magvit() -> Magvit:
    torch.manual_seed(0)
    return Magvit(TINY).requires_grad_(False).eval()


def stored(magvit: Magvit) -> dict[str, Tensor]:
    """The tensors of a public file."""
    bits = magvit.config.code_bits
    tables = {
        "quantize.embedding": signs_of(torch.arange(2**bits)[None, None], bits)[0, :, 0].T.contiguous(),
        "quantize.power_vals": 2 ** torch.arange(bits - 1, -1, -1),
    }
    return magvit.state_dict() | tables


@pytest.fixture
def folder(magvit, tmp_path) -> Path:
    save_file(stored(magvit), tmp_path / "pytorch_model.safetensors")
    return tmp_path


@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_it_computes_what_the_convolutions_of_a_kl_vae_compute(size) -> None:
    """Encoder and decoder are those of latent-diffusion's VAE, which diffusers has too: the same weights, the same
    numbers.
    """
    torch.manual_seed(0)
    vae = KLVAE(KLVAEConfig(ch=32, ch_mult=(1, 2, 1), num_res_blocks=2, z_channels=3)).requires_grad_(False)
    table = kl_vae_names(vae.config)
    public = {table.key(name): x.view(table.stored_shape(name, x.shape)) for name, x in vae.state_dict().items()}
    half = {"widths": (32, 64, 32)}
    config = MagvitConfig(6, 32, MagvitHalf(**half, blocks=(2, 2, 2)), MagvitHalf(**half, blocks=(3, 3, 3)))
    encoder = _loaded(Encoder(config), public, "encoder.", {"quant_conv": nn.Conv2d(6, 6, 1)})
    pixels = torch.randn(1, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels), vae.moments(pixels), atol=2e-5, rtol=1e-4)
    config = MagvitConfig(3, 32, config.encoder, config.decoder)
    decoder = _loaded(Decoder(config), public, "decoder.", {"post_quant_conv": nn.Conv2d(3, 3, 1)})
    z = torch.randn(1, 3, size[0] // 4, size[1] // 4)
    with torch.no_grad():
        latents = z * vae.config.scale_factor - vae.config.shift_factor * vae.config.scale_factor
        torch.testing.assert_close(decoder(z), vae.decode(latents), atol=5e-5, rtol=1e-4)


def _loaded(half: nn.Module, public: dict[str, Tensor], prefix: str, single: dict[str, nn.Conv2d]) -> nn.Module:
    """A half with the weights of the VAE's; the 1x1 convolution that the VAE lacks does nothing."""
    state = {key.removeprefix(prefix): x for key, x in public.items() if key.startswith(prefix)}
    for name, layer in single.items():
        nn.init.dirac_(layer.weight)
        nn.init.zeros_(layer.bias)
        state |= {f"{name}.{kind}": x for kind, x in layer.state_dict().items()}
    half.load_state_dict(state)
    return half.eval()


def test_the_first_channel_is_the_highest_bit_and_zero_is_no_bit() -> None:
    z = torch.tensor([[0.3, -0.3, 1e-9, 0.0], [-1.0, 2.0, -0.0, 5.0]]).T.view(1, 4, 2, 1)
    assert codes_of(z).tolist() == [[[0b1010], [0b0101]]]
    codes = torch.arange(16).view(1, 4, 4)
    assert torch.equal(codes_of(signs_of(codes, 4)), codes)


def test_codes_of_a_picture_and_the_picture_of_codes(magvit) -> None:
    """Any size in whole cells, and the same codes under autocast."""
    picture = torch.randint(256, (6, 10, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    codes = picture_codes(magvit, picture)
    assert codes.shape == (3, 5) and codes.dtype is torch.int64
    assert set(codes.flatten().tolist()) <= set(range(16))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(picture_codes(magvit, picture), codes)
        pixels = magvit.decode(codes[None])
    assert pixels.shape == (1, 3, 6, 10) and pixels.dtype is torch.float32
    assert torch.equal(pixels, magvit.decode(codes[None]))


def test_the_public_file_has_these_sizes() -> None:
    """Parameters and tensors of the public file; sizes are read from the shapes alone."""
    with torch.device("meta"):
        magvit = Magvit(MAGVIT_V2)
    assert magvit.decoder is not None
    shapes = {key: tuple(x.shape) for key, x in magvit.state_dict().items()}
    assert sum(p.numel() for p in magvit.encoder.parameters()) == 55_439_171
    assert sum(p.numel() for p in magvit.decoder.parameters()) == 39_947_833
    assert len(shapes) == 380  # and the two tables of the quantizer
    assert shapes["encoder.down.3.block.0.nin_shortcut.weight"] == (512, 256, 1, 1)
    assert shapes["decoder.up.1.upsample.conv.weight"] == (128, 128, 3, 3)
    assert MagvitConfig.from_shapes(shapes, "here") == MAGVIT_V2
    assert (MAGVIT_V2.codebook_size, MAGVIT_V2.downsample) == (8192, 16)


@pytest.mark.parametrize("with_decoder", [True, False])
def test_a_folder_is_read(magvit, folder, with_decoder) -> None:
    read = read_magvit(folder, with_decoder=with_decoder)
    pixels = torch.randn(1, 3, 8, 8)
    assert torch.equal(read.z(pixels), magvit.z(pixels)) and (read.decoder is not None) == with_decoder
    if not with_decoder:
        with pytest.raises(ValueError, match="without its decoder"):
            read.decode(torch.zeros(1, 2, 2, dtype=torch.int64))
    assert check_magvit(folder) == TINY


def test_a_tokenizer_inside_a_larger_file(magvit, tmp_path) -> None:
    tensors = {f"vq_model.{key}": x for key, x in stored(magvit).items()} | {"other": torch.ones(1)}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with open_weights(tmp_path / "pytorch_model.bin") as weights:
        assert fill_magvit(weights, "cpu", under="vq_model.").config == TINY


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder.mid.attn_1.q.bias": None}, r"1 missing \(encoder\.mid\.attn_1\.q\.bias\)"),
        ({"encoder.down.2.attn.bias": torch.ones(1)}, r"1 unexpected \(encoder\.down\.2\.attn\.bias\)"),
        ({"decoder.conv_in.weight": torch.ones(1)}, r"1 misshapen \(decoder\.conv_in\.weight"),
        ({"decoder.up.0.block.0.conv2.weight": None}, "holds no MAGVIT-v2 tokenizer"),
        ({"encoder.conv_in.bias": torch.full((32,), torch.nan)}, r"NaN or infinite numbers \(encoder\.conv_in\.bias\)"),
    ],
)
def test_a_file_that_does_not_fit(changes, message, magvit, folder) -> None:
    tensors = {key: x for key, x in (stored(magvit) | changes).items() if x is not None}
    save_file(tensors, folder / "pytorch_model.safetensors")
    with pytest.raises(UserError, match=message):
        check_magvit(folder)


def test_a_folder_without_a_file(tmp_path) -> None:
    with pytest.raises(UserError, match=r"holds none of pytorch_model\.safetensors.*magvitv2"):
        read_magvit(tmp_path)


def test_it_is_made_without_files() -> None:
    assert empty_magvit(TINY, "cpu").codes(torch.zeros(1, 3, 4, 4)).shape == (1, 2, 2)
