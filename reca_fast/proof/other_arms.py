"""The study's arms and claims of the other models, each from a base of its own at toy size.

They are reported as they come out: a model that has not learned to draw in its budget shows nothing, and is said to.
"""

from pathlib import Path

from .arms import LAYOUT, Arm, Claim

BASES = {name: Path("runs") / f"toy-base-{name}" / "base" for name in ("bagel", "harmon", "showo", "showo-vq")}
"""Name of a model -> where `python -m reca_fast.proof.pretraining --model NAME` puts its base unless told otherwise."""


def _arm(model: str, name: str, what: str) -> Arm:
    return Arm(f"{model}-{name}", f"proof/{model}-{name}", what, model)


ARMS = (
    *(Arm(f"{model}-none", f"proof/{model}-reca", "the base as it is", model, trains=False) for model in BASES),
    *(_arm(model, "sft", "captions that seldom name a colour") for model in BASES),
    _arm("bagel", "reca", "RECA, conditions are understanding embeddings"),
    _arm("bagel", "latents", "RECA, conditions are generation latents"),
    _arm("harmon", "reca", "RECA alone"),
    _arm("harmon", "i2t", "RECA, and captions of the same pictures are said"),
    _arm("showo", "reca", "RECA alone, conditions are seen through CLIP"),
    _arm("showo", "i2t", "RECA, and captions of the same pictures are said"),
    _arm("showo-vq", "reca", "RECA alone, conditions are codes of half the side"),
    _arm("showo-vq", "copy", "RECA alone, conditions are the target's own codes"),
)

COPIES, FADES = "its own codes are copied, the loss goes to zero", "it fades without i2t"
_ANY = tuple(
    claim
    for model in BASES
    for claim in (
        Claim("RECA improves its base", "overall rises", f"{model}-reca", f"{model}-none", "overall"),
        Claim("RECA beats training on sparse captions", "ahead at equal cost", f"{model}-reca", f"{model}-sft", LAYOUT),
    )
)
CLAIMS = (
    *_ANY,
    Claim("Embeddings beat latents as conditions", "latents teach copying", "bagel-reca", "bagel-latents", LAYOUT),
    Claim(
        "... though the loss of latents is lower",
        "the loss tells nothing",
        "bagel-latents",
        "bagel-reca",
        "loss",
        lower_is_better=True,
    ),
    Claim("Codes of half the side beat the target's own", COPIES, "showo-vq-reca", "showo-vq-copy", LAYOUT),
    Claim(
        "... though the loss of copying is lower",
        COPIES,
        "showo-vq-copy",
        "showo-vq-reca",
        "loss",
        lower_is_better=True,
    ),
    *(
        Claim(name, FADES, f"{model}-{a}", f"{model}-{b}", "understanding", lower_is_better=True)
        for model in ("harmon", "showo")
        for name, a, b in (
            ("RECA alone harms understanding", "none", "reca"),
            ("RECA with i2t understands better than without", "i2t", "reca"),
        )
    ),
)
