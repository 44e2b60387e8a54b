"""How pictures are drawn, and the authors' settings by name."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from reca_fast.schema import Fraction, Range

from .declare import Seed, neutral

GuidanceScale = Annotated[float, Range(1, 1000)]
GuidanceRenorm = Literal["global", "channel", "text_channel"]


@dataclass
class SamplingConfig:
    """How pictures are drawn: Euler steps from noise to data with classifier-free guidance."""

    steps: Annotated[int, Range(1, 10_000)] = neutral(49)
    """How often the model is evaluated for a picture. The authors count the points of the time grid instead, which are
    one more: 49 here is their num_timesteps of 50.
    """
    timestep_shift: Annotated[float, Range(above=0, at_most=1000)] = neutral(3.0)
    """How far the steps are moved towards the noisy times; 1 spaces them evenly."""
    guidance: GuidanceScale = neutral(1.0)
    """How far each step is led away from what would be drawn without the prompt, the authors' cfg_text_scale. 1 is off
    and halves the cost; `generate` uses 4 unless told otherwise.
    """
    image_guidance: GuidanceScale = neutral(1.0)
    """How far each step is led away from what would be drawn without the condition, the authors' cfg_img_scale; 1 is
    off. It comes after `guidance`, which has to be above 1 as well.
    """
    guidance_interval: tuple[Fraction, Fraction] = neutral((0.0, 1.0))
    """Guidance acts at times t with first < t <= second, where 1 is noise and 0 the picture; steps at other times are
    unguided, and cheaper.
    """
    guidance_renorm: GuidanceRenorm = neutral("global")
    """Guided steps grow too long and are scaled back to their unguided length: the whole picture's at once (global),
    every token's (channel), or every token's after `guidance` and before `image_guidance` (text_channel).
    """
    guidance_renorm_min: Fraction = neutral(0.0)
    """The smallest factor of that scaling; 1 switches it off."""
    seed: Seed = neutral(0)
    """Seed of the noise that drawing starts from; picture i of a call has seed + i."""


_AUTHORS: dict[str, Any] = {
    "steps": 49,  # num_timesteps 50
    "timestep_shift": 3.0,
    "guidance": 4.0,
    "image_guidance": 1.0,
    "guidance_interval": [0.0, 1.0],
    "guidance_renorm": "global",
    "guidance_renorm_min": 0.0,
}
PRESETS: dict[str, dict[str, Any]] = {
    "geneval": _AUTHORS,
    "dpg": _AUTHORS | {"guidance": 3.0},
    "wise": _AUTHORS | {"guidance_interval": [0.4, 1.0]},
    "app": _AUTHORS | {"guidance_interval": [0.4, 1.0], "image_guidance": 1.5},
    "notebook": _AUTHORS | {"guidance_interval": [0.4, 1.0], "guidance_renorm_min": 1.0},
    "notebook-reconstruct": _AUTHORS
    | {"image_guidance": 2.0, "guidance_renorm": "text_channel", "guidance_renorm_min": 1.0},
}
"""Name of an authors' script, app or notebook (RECA's) -> the fields of `SamplingConfig` as it sets them."""
