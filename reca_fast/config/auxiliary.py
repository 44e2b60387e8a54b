"""The auxiliary decoder of a plain VLM."""

from dataclasses import dataclass
from typing import Annotated, Literal

from reca_fast.schema import Range

from .declare import Place, fixed

TargetSpace = Literal["latent", "pixel"]


@dataclass
class AuxiliaryConfig:
    """The weak decoder that reconstructs a picture from a VLM's hidden states while the VLM keeps its text loss. It
    exists in training alone. Its share of the loss is loss.reca, that of the text loss.i2t.
    """

    decoder_size: Annotated[float, Range(0.01, 1000)] = fixed(30.0)
    """Parameters of the decoder, in millions: it is made as wide as they allow. 10 to 50 are usual, 100 is strong."""
    target: TargetSpace = fixed("latent")
    """What is reconstructed: latent, the picture's latents as a frozen VAE encodes it; pixel, its colours."""
    vae: Place = fixed("", by="content")
    """Folder of the VAE (an AutoencoderKL as diffusers writes it: config.json and
    diffusion_pytorch_model.safetensors); empty: the folder vae/ inside the checkpoint folder. Needed for latents.
    """
