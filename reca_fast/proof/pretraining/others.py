"""Checkpoints of the other models at toy size, which have learned nothing: what their bases begin with.

Unlike OpenUni's, their bases learn to understand and to draw at once, from the recipe `proof/base-NAME`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file

from reca_fast.models.bagel import tiny as bagel
from reca_fast.models.bagel.encoders import VAE_FILE
from reca_fast.models.bagel.tiny.tokenizer import write_tokenizer
from reca_fast.models.files.folder import write_object
from reca_fast.models.harmon import tiny as harmon
from reca_fast.models.harmon.config import HarmonConfig
from reca_fast.models.harmon.names import VAE_PREFIX
from reca_fast.models.harmon.tiny.weights import tiny_weights
from reca_fast.models.harmon.weights import HF_FILES
from reca_fast.models.parts.kl_vae import save_kl_vae
from reca_fast.models.parts.kl_vae_names import kl_vae_names
from reca_fast.models.parts.magvit import MAGVIT_FILES, MAGVIT_FOLDER
from reca_fast.models.showo import tiny as showo
from reca_fast.models.showo.tiny import config as showo_config
from reca_fast.models.showo.tiny.tokenizer import write_tokenizer as write_phi_tokenizer
from reca_fast.models.showo.tiny.weights import stored
from reca_fast.toy import SIDE

from .codes import CODES, STEPS, legible, teach_codes
from .halving import halving_config, halving_vae
from .lessons import texts_of_the_world

TEXT_VOCABULARY = 1000
PHI_VOCABULARY = 800
"""Show-o wants exactly so many ids as it states, and no more are learned from these texts than some 900."""
PATCH = 8
"""Pixels of a side that a token of any encoder covers, so that conditions and targets have equal grids of 4 x 4."""
SPREAD = 0.5
"""Standard deviation of scaled latents, beside noise of 1."""


def write_bagel(folder: Path, seed: int) -> None:
    """A BAGEL of 0.9 M parameters in each expert. Its vision tower, which nothing trains, sees the low frequencies of
    each patch.
    """
    config = halving_config(SPREAD)
    bagel.write_tiny_checkpoint(
        folder,
        seed=seed,
        hidden_size=128,
        intermediate_size=256,
        layers=4,
        text_vocab=TEXT_VOCABULARY,
        vit_side=4,
        latent_side=4,
        vae=config,
        patch_size=PATCH,
        latent_patch_size=PATCH // config.downsample,
    )
    write_tokenizer(folder, TEXT_VOCABULARY, texts=texts_of_the_world())
    save_kl_vae(halving_vae(config), folder / VAE_FILE)


def write_harmon(folder: Path, seed: int) -> None:
    """A Harmon of 0.8 M parameters: what it sees of a picture are its latents, encoded by the MAR that draws."""
    vae = halving_config(1.0, as_in_mar=True)
    values = harmon.TinyConfig(hidden_size=128, intermediate_size=256, layers=3, text_vocab=TEXT_VOCABULARY).values()
    values["mar"] |= {
        "img_size": SIDE,
        "vae_stride": vae.downsample,
        "patch_size": PATCH // vae.downsample,
        "vae_embed_dim": vae.z_channels,
    }
    values["vae"] = {
        "ch": vae.ch,
        "ch_mult": list(vae.ch_mult),
        "num_res_blocks": vae.num_res_blocks,
        "norm_num_groups": vae.norm_groups,
        "embed_dim": vae.z_channels,
    }
    values["vae_scale"] = vae.scale_factor
    config = HarmonConfig.from_dict(values, "the toy checkpoint")
    write_object(folder / "config.json", values)
    write_tokenizer(folder, TEXT_VOCABULARY, texts=texts_of_the_world())
    weights = tiny_weights(config, seed)
    names = kl_vae_names(config.vae)
    for name, tensor in halving_vae(config.vae).state_dict().items():
        weights[VAE_PREFIX + names.key(name)] = tensor.reshape(names.stored_shape(name, tensor.shape)).contiguous()
    save_file(weights, folder / HF_FILES[0])


def write_showo(folder: Path, seed: int, *, clip: bool = True) -> None:
    """A Show-o of 0.7 M parameters. It sees conditions through a random CLIP, which nothing trains, or without one as
    codes.
    """
    tower = replace(showo_config.TINY_CLIP, hidden_size=96, intermediate_size=192, image_size=SIDE, patch_size=PATCH)
    showo.write_tiny_checkpoint(
        folder,
        seed=seed,
        clip=clip,
        hidden_size=128,
        intermediate_size=256,
        text_vocab=PHI_VOCABULARY,
        num_vq_tokens=(SIDE // CODES.downsample) ** 2,
        magvit=CODES,
        tower=tower,
    )
    write_phi_tokenizer(folder, PHI_VOCABULARY, texts_of_the_world())

    def tell(step: int, loss: float) -> None:
        if step % 50 == 0:
            print(f"codes {step}/{STEPS}  loss {loss:.4f}", flush=True)

    codes = teach_codes(seed, STEPS, tell)
    print(f"codes: the detector reads {legible(codes):.3f} of scenes that went through them", flush=True)
    save_file(stored(codes), folder / MAGVIT_FOLDER / MAGVIT_FILES[0])


def write_showo_vq(folder: Path, seed: int) -> None:
    """`write_showo` without CLIP."""
    write_showo(folder, seed, clip=False)


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "bagel": write_bagel,
    "harmon": write_harmon,
    "showo": write_showo,
    "showo-vq": write_showo_vq,
}
"""Name of a model -> what writes its checkpoint folder, from a seed."""
