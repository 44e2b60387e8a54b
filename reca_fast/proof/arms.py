"""The arms of the study, each a recipe, and the paper's claims about them, each with the score that decides it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Arm:
    """One way to post-train a base."""

    name: str
    recipe: str
    """Name of a shipped recipe."""
    what: str
    """In a few words, for tables."""
    base: str = "openuni"
    """Name of the model whose base it starts from: a key of `BASES`, here or in `other_arms`."""
    trains: bool = True

    @property
    def says(self) -> bool:
        """Whether the model says captions; OpenUni's understanding is frozen and was made for drawing."""
        return self.base != "openuni"


@dataclass(frozen=True)
class Claim:
    """An ordering that the paper states: arm `a` is ahead of arm `b` in a score."""

    name: str
    paper: str
    """What the paper says."""
    a: str
    b: str
    score: str
    lower_is_better: bool = False


BASES = {"openuni": Path(__file__).parent / "base"}
"""Name of a model -> the checkpoint folder of its base, which ships. Other models: `other_arms`."""

ARMS = (
    Arm("none", "toy", "the base as it is", trains=False),
    Arm("sft-sparse", "proof/sft-sparse", "captions that seldom name a colour"),
    Arm("sft-dense", "proof/sft-dense", "complete captions"),
    Arm("sft-mixed", "proof/sft-mixed", "complete captions, and as often sparse ones"),
    Arm("reca", "toy", "RECA: no captions of what is drawn again"),
    Arm("sft-then-reca", "proof/sft-then-reca", "half the steps sparse captions, then half RECA"),
    Arm("reca-then-sft", "proof/reca-then-sft", "half the steps RECA, then half sparse captions"),
    Arm("condition-half", "proof/condition-half", "RECA, conditions of half the side"),
    Arm("condition-quarter", "proof/condition-quarter", "RECA, conditions of a quarter of the side"),
    Arm("blur-1", "proof/blur-1", "RECA, conditions blurred by 1 pixel"),
    Arm("blur-3", "proof/blur-3", "RECA, conditions blurred by 3 pixels"),
    Arm("templates-1", "proof/templates-1", "RECA, one template, for complete descriptions"),
    Arm("templates-all", "proof/templates-all", "RECA, the package's 360 templates"),
    Arm("data-64", "proof/data-64", "RECA, 64 pictures"),
    Arm("data-512", "proof/data-512", "RECA, 512 pictures"),
)

LAYOUT = "dense.colour_layout"

CLAIMS = (
    Claim("RECA improves its base", "overall rises", "reca", "none", "overall"),
    Claim("RECA binds what prompts specify", "attributes and layout rise most", "reca", "none", "dense"),
    Claim("... in colours and places", "attributes and layout rise most", "reca", "none", LAYOUT),
    Claim("RECA beats training on sparse captions", "ahead at equal cost", "reca", "sft-sparse", "overall"),
    Claim("... on fully specified prompts", "ahead at equal cost", "reca", "sft-sparse", LAYOUT),
    Claim("RECA beats training on dense captions", "ahead at equal cost", "reca", "sft-dense", "overall"),
    Claim("... on fully specified prompts", "ahead at equal cost", "reca", "sft-dense", LAYOUT),
    Claim("RECA beats training on dense and sparse captions", "not in the paper", "reca", "sft-mixed", "overall"),
    Claim("... on fully specified prompts", "not in the paper", "reca", "sft-mixed", LAYOUT),
    Claim("SFT then RECA beats RECA then SFT", "RECA comes last", "sft-then-reca", "reca-then-sft", "overall"),
    Claim("... on fully specified prompts", "RECA comes last", "sft-then-reca", "reca-then-sft", LAYOUT),
    Claim(
        "Smaller conditions do better (half)",
        "small ones keep meaning, not pixels",
        "condition-half",
        "reca",
        "overall",
    ),
    Claim(
        "Smaller conditions do better (quarter)",
        "small ones keep meaning, not pixels",
        "condition-quarter",
        "reca",
        "overall",
    ),
    Claim("A little blur does better than none", "codes need blur, embeddings do not", "blur-1", "reca", LAYOUT),
    Claim("A little blur does better than much", "codes need blur, embeddings do not", "blur-1", "blur-3", LAYOUT),
    Claim("360 templates beat one", "helps Show-o, hardly Harmon", "templates-all", "templates-1", "overall"),
    Claim("Templates that ask for parts beat one", "not in the paper", "reca", "templates-1", "overall"),
    Claim("More pictures are better", "rises from 10,000 to 240,000", "reca", "data-64", "overall"),
    Claim("512 pictures beat 64", "rises from 10,000 to 240,000", "data-512", "data-64", "overall"),
)
