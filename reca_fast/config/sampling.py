"""How pictures are drawn, and the authors' settings by name."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, TypeVar

from reca_fast.errors import UserError
from reca_fast.schema import Fraction, NonNegativeFloat, PositiveInt, Range, from_dict

from .declare import Seed, neutral

GuidanceScale = Annotated[float, Range(1, 1000)]
GuidanceSchedule = Literal["constant", "linear"]
GuidanceRenorm = Literal["global", "channel", "text_channel"]
T = TypeVar("T")


@dataclass
class SamplingConfig:
    """How pictures are drawn. A setting that is not set (null) has the value that the model's authors use; one that a
    model does not know is refused when it is set.
    """

    steps: Annotated[int, Range(1, 10_000)] | None = neutral(None)
    """How often the model is evaluated for a picture: 49 for BAGEL, whose authors count the points of the time grid
    instead, which are one more (num_timesteps 50), 20 for OpenUni, 64 for Harmon.
    """
    timestep_shift: Annotated[float, Range(above=0, at_most=1000)] | None = neutral(None)
    """BAGEL, OpenUni: how far the steps are moved towards the noisy times, 3 unless set; 1 spaces them evenly."""
    guidance: GuidanceScale | None = neutral(None)
    """How far each step is led away from what would be drawn without the prompt, BAGEL's cfg_text_scale. 1 is off and
    halves the cost; `generate` guides as the authors do (BAGEL 4) unless told otherwise.
    """
    guidance_schedule: GuidanceSchedule | None = neutral(None)
    """Harmon: the same guidance in every step (constant), or one that grows from 1 with the share of the picture that
    is drawn (linear).
    """
    image_guidance: GuidanceScale | None = neutral(None)
    """BAGEL, OpenUni: how far each step is led away from what would be drawn without the condition; 1, which is off,
    unless set. BAGEL's is the authors' cfg_img_scale, 2 for a picture that is edited; it comes after `guidance`, which
    has to be above 1 as well. OpenUni has it in place of `guidance`, and needs data.text_dropout for it in training.
    """
    guidance_interval: tuple[Fraction, Fraction] | None = neutral(None)
    """BAGEL: guidance acts at times t with first < t <= second, where 1 is noise and 0 the picture; steps at other
    times are unguided, and cheaper. [0, 1] unless set.
    """
    guidance_renorm: GuidanceRenorm | None = neutral(None)
    """BAGEL: guided steps grow too long and are scaled back to their unguided length: the whole picture's at once
    (global, unless set), every token's (channel), or every token's after `guidance` and before `image_guidance`
    (text_channel, unless set for a picture that is edited).
    """
    guidance_renorm_min: Fraction | None = neutral(None)
    """BAGEL: the smallest factor of that scaling, 0 unless set; 1 switches it off."""
    temperature: NonNegativeFloat | None = neutral(None)
    """Harmon, Show-o: how much chance there is in what is drawn, 1 unless set; smaller values draw what is likelier."""
    together: PositiveInt = neutral(1)
    """How many pictures of one size are drawn at once: more is faster, and takes more memory. At 1 no bit of a picture
    depends on what is drawn beside it, above 1 its rounding does.
    """
    seed: Seed = neutral(0)
    """Seed of what drawing starts from and draws; picture i of a call has seed + i."""

    def filled(self, kind: type[T]) -> T:
        """The settings of one model, those that are not set as its authors have them.

        Args:
            kind: a dataclass of the settings that the model follows, a part of those here, with the authors' values as
                defaults (`Model.SAMPLING`).

        Raises:
            UserError: a setting is set that the model does not follow.
        """
        chosen = {name: value for name, value in vars(self).items() if name not in ANY and value is not None}
        followed = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
        for name in chosen.keys() - followed - OFF.keys():
            raise UserError(f"sampling.{name} is set, and this model draws without it; leave it out.")
        for name, off in OFF.items():
            if name not in followed and chosen.pop(name, off) != off:
                raise UserError(f"sampling.{name} is set, and this model draws without it; set it to {off:g}.")
        return kind(**chosen)

    def with_preset(self, name: str, kind: type[Any]) -> "SamplingConfig | None":
        """These settings, and for those that are not set the preset's; None where the model does not follow every
        setting of the preset, which is then another model's.

        Args:
            name: a key of PRESETS.
            kind: as in `filled`.
        """
        preset = PRESETS[name]
        if not preset.keys() <= {entry.name for entry in fields(kind)}:
            return None
        authors = from_dict(SamplingConfig, preset, f"the preset {name}")
        return replace(self, **{each: getattr(authors, each) for each in preset if getattr(self, each) is None})


ANY = ("seed", "together")
"""Settings that are no model's own."""
OFF: Mapping[str, float] = {"guidance": 1.0, "image_guidance": 1.0}
"""Settings with a value that switches them off, which any model takes."""


_EDITING: dict[str, Any] = {"image_guidance": 2.0, "guidance_renorm": "text_channel"}
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
    "notebook-reconstruct": _AUTHORS | _EDITING | {"guidance_renorm_min": 1.0},
    "edit": _AUTHORS | _EDITING,
    "imgedit": _AUTHORS | _EDITING | {"image_guidance": 1.5},
    "gedit": _AUTHORS | _EDITING | {"image_guidance": 1.5, "guidance_interval": [0.4, 1.0]},
}
"""Name of an authors' script, app or notebook (RECA's) -> the fields of `SamplingConfig` as it sets them."""
