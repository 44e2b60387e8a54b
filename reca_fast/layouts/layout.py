"""What a benchmark is to whoever draws it: prompts, and files that show their pictures."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from reca_fast.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Output:
    """One file that is drawn."""

    path: PurePosixPath
    """Its place in the folder of the pictures. The ending says the format: .png, or .jpg."""
    numbers: tuple[int, ...] = (0,)
    """Which of its prompt's pictures it shows: one, or four that become a grid, row by row."""


@dataclass(frozen=True)
class Item:
    """One prompt of a benchmark, with all that is written for it."""

    key: str
    """Its name, which no other prompt of the benchmark has. Its pictures' noise depends on it."""
    prompt: str
    """What is to be drawn or, with a `source`, how that is to be changed."""
    outputs: tuple[Output, ...]
    beside: Mapping[PurePosixPath, Callable[[], bytes]] = field(default_factory=dict)
    """Other files that the evaluator wants beside the pictures -> what makes their content."""
    source: "Callable[[], Tensor] | None" = None
    """Reads the picture that is to be edited, uint8 [H, W, 3]; None where one is drawn from the prompt alone."""
    kind: str = ""
    """What sort of prompt it is, where evaluators differ by that: a category, a type of edit."""
    where: str = ""
    """Where the prompt stands, for messages."""


@dataclass(frozen=True)
class Request:
    """Which prompts are to be drawn."""

    prompts: Path
    """The benchmark's file of prompts, or the folder of them."""
    per_prompt: int
    """Pictures of each prompt."""
    category: str = ""
    """T2I-CompBench: the category of the prompts; empty where the file's name says it."""
    origin: Path | None = None
    """ImgEdit: the folder below which the pictures lie that are edited; None for the folder of the prompts."""
    model: str = "model"
    """What the model is called, where a layout has a folder of that name."""


@dataclass(frozen=True)
class Prompts:
    """What a benchmark's files say."""

    items: Sequence[Item]
    files: Sequence[Path]
    """The files that the prompts came from, without the pictures to be edited."""
    published: int | None
    """How many prompts the benchmark has, or the part of it that was asked for; None where it does not say."""


def command(*words: object) -> str:
    """A command line of these words."""
    return shlex.join(map(str, words))


@dataclass(frozen=True)
class Drawn:
    """Where pictures lie when all are drawn, for the words about what comes next."""

    out: Path
    """The folder of the run, which holds the manifest; absolute."""
    folder: Path
    """The folder of the pictures: `out`, or a folder in it."""
    request: Request
    """What was asked for, with absolute paths."""
    side: int
    """Width of the pictures in pixels; 0 where sizes differ."""
    items: Sequence[Item]


@dataclass(frozen=True)
class Layout:
    """The folder layout that one evaluator reads, and which evaluator that is."""

    benchmark: str
    """As its authors call it, with whose reader it is where there are several."""
    per_prompt: int
    """How many pictures of each the authors of RECA draw."""
    judge: str
    """The models that judge the pictures."""
    score: str
    """How the score is made of their answers."""
    read: Callable[[Request], Prompts]
    """Reads the prompts. Raises UserError for a file that is not the benchmark's, and names the bad line."""
    commands: Callable[[Drawn], Sequence[str]]
    """What to run next, in a copy of the evaluator."""
    only: str = ""
    """Why no other number of pictures than `per_prompt` can be read; empty where any number can."""
    folder: str = ""
    """The folder in --out that holds the pictures, where nothing else may lie beside them; empty: --out itself."""
    preset: str = ""
    """A key of PRESETS, the settings with which BAGEL's authors draw the benchmark; empty: those of the model."""
    square: bool = False
    """Whether the evaluator takes square pictures only."""
    index: Callable[[Drawn], Mapping[str, bytes]] | None = None
    """Files in --out that name the pictures, by name; they are written when all pictures are there."""

    def pictures_per_prompt(self, asked: int | None) -> int:
        """How many pictures of each prompt are drawn when `asked` are wanted.

        Raises:
            UserError: the evaluator cannot read so many.
        """
        if asked is None or asked == self.per_prompt or not self.only:
            return self.per_prompt if asked is None else asked
        raise UserError(f"per_prompt={asked}: {self.only}; set it to {self.per_prompt}, or leave it out.")
