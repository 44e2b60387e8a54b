"""Sample builders that need no checkpoint: BAGEL's arithmetic of tokens, with a tokenizer of one line."""

from collections.abc import Callable, Sequence

from reca_fast.config import DataConfig
from reca_fast.data.samples import SampleBuilder
from reca_fast.models.bagel.config import BAGEL_7B_MOT
from reca_fast.models.bagel.inputs import BagelInputs
from reca_fast.models.bagel.tokenizer import BagelTokenizer

MARKERS = BagelTokenizer(bos=1, eos=2, start_of_image=3, end_of_image=4, qwen=None)


def lengths(text: str) -> list[int]:
    """The id of a word is its length."""
    return [len(word) for word in text.split()]


def builder_of(config: DataConfig, tokenize: Callable[[str], Sequence[int]] = lengths) -> SampleBuilder:
    """The builder of BAGEL's samples at the published sizes."""

    class Inputs(BagelInputs):
        def tokenize(self, text: str) -> list[int]:
            return list(tokenize(text))

    return SampleBuilder(config, Inputs(BAGEL_7B_MOT, MARKERS, config))
