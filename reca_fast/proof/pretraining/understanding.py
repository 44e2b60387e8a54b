"""An understanding in which a picture and its caption come to the same: the vision tower, the language model and the
queries of a tiny OpenUni, taught together before anything is drawn.

Behind a picture, or behind a text, the states of the queries are to say the caption, one word each. The head that says
words is linear and the same for both, and the states of a picture are drawn to those of its caption. So whatever
later learns to draw from the states of one knows what those of the other mean.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reca_fast.models.openuni.config import OpenUniConfig
from reca_fast.models.openuni.network import OpenUni
from reca_fast.models.openuni.tiny.checkpoint import begin
from reca_fast.models.openuni.vit import InternVit
from reca_fast.models.parts.qwen2 import causal_view
from reca_fast.randomness import generator

from .lessons import Lesson, Lessons

LEARNING_RATE, BETAS, WEIGHT_DECAY, WARMUP, LAST_SHARE = 2e-3, (0.9, 0.95), 0.01, 100, 0.02
NOISE = 0.3
"""Standard deviation of what is added to states before they are read: what is to be told apart moves farther apart."""
ALIGNMENT_RISES = 0.2
"""Share of the steps in which the weight of drawing states together rises from 0 to 1."""


class Understanding(nn.Module):
    """The parts of a tiny OpenUni that understand, with the heads that say words and tell their places.

    Args:
        config: sizes.
        seed: of the weights.
    """

    def __init__(self, config: OpenUniConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network, self.vit = OpenUni(config), InternVit(config)
            self.decoder = network.decoder.requires_grad_(True)
            self.embed_tokens = network.embed_tokens.requires_grad_(True)
            self.meta_queries = network.meta_queries
            self.head = nn.Linear(config.llm.hidden_size, config.llm.vocab_size, bias=False)
            self.places = nn.Linear(config.llm.hidden_size, config.num_queries)
            for name, parameter in self.named_parameters():
                begin(name, parameter.data)
            self.embed_tokens.weight.data.normal_(std=0.5)
            for head in (self.head, self.places):
                head.weight.data.normal_(std=0.02)

    def states(self, prompts: Sequence[Sequence[int]], pictures: Tensor, picture: int) -> Tensor:
        """What the queries hold behind each of N prompts, [N, Q, width].

        Args:
            prompts: token ids.
            pictures: uint8 [K, side, side, 3], of the first K prompts.
            picture: the id that stands for a token of a picture.
        """
        queries = self.config.num_queries
        lengths = [len(prompt) + queries for prompt in prompts]
        starts = [0, *accumulate(lengths)][:-1]
        ids = torch.tensor([token for prompt in prompts for token in (*prompt, *[-1] * queries)])
        asked = torch.tensor(
            [start + len(p) + q for start, p in zip(starts, prompts, strict=True) for q in range(queries)]
        )
        rows = F.embedding(ids.clamp(min=0), self.embed_tokens.weight)
        rows = rows.index_copy(0, asked, self.meta_queries.repeat(len(prompts), 1))
        if len(pictures):
            pixels = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
            rows = rows.index_copy(0, (ids == picture).nonzero()[:, 0], self.vit.together(pixels, "sdpa").flatten(0, 1))
        positions = torch.cat([torch.arange(length) for length in lengths])
        states, _ = self.decoder(self.decoder.stream(rows, positions), causal_view(lengths), "sdpa")
        behind: Tensor = states[asked].unflatten(0, (len(prompts), queries))
        return behind

    def loss(self, lesson: Lesson, picture: int, alignment: float, noise: Tensor) -> Tensor:
        """The cross-entropy of the words that pictures, captions and other texts say, and of the places where they say
        them, each summed over the three, and `alignment` times the mean squared difference between the states of
        pictures and of their captions.

        Without the places, "red" would be the same state wherever it stands, and nobody who reads it could tell which
        of two things is red.

        Args:
            noise: standard normal, of the shape of the states.
        """
        states = self.states(lesson.prompts, lesson.pictures, picture)
        read = (states + NOISE * noise).flatten(0, 1)
        said = F.cross_entropy(self.head(read), lesson.said.flatten())
        places = torch.arange(self.config.num_queries).repeat(len(states))
        told = F.cross_entropy(self.places(read), places)
        size = len(lesson.pictures)
        apart = (states[:size] - states[size : 2 * size]).square().mean()
        return 3 * (said + told) + alignment * apart


@dataclass(frozen=True)
class Course:
    """How the understanding is taught."""

    steps: int = 600
    size: int = 64
    """Pictures of a lesson."""
    seed: int = 0
    save_every: int = 100


def teach(
    understanding: Understanding,
    lessons: Lessons,
    picture: int,
    course: Course,
    saved: Path,
    tell: Callable[[int, float], None],
) -> None:
    """Train with AdamW. The same arguments give the same weights on the same kind of machine, also where it was stopped
    and begun again.

    Args:
        picture: the id that stands for a token of a picture.
        saved: a file of where it stands, which is gone on from if it is there.
        tell: is called after every step with its number, from 1, and its loss.
    """
    optimizer = torch.optim.AdamW(understanding.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
    done = 0
    if saved.is_file():
        state: dict[str, Any] = torch.load(saved, weights_only=True)
        understanding.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    shape = 3 * course.size, understanding.config.num_queries, understanding.config.llm.hidden_size
    for step in range(done, course.steps):
        fall = LAST_SHARE + (1 - LAST_SHARE) * (1 + math.cos(math.pi * step / course.steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / WARMUP) * fall
        alignment = min(1, step / (ALIGNMENT_RISES * course.steps))
        noise = torch.randn(shape, generator=generator("understanding", course.seed, step))
        loss = understanding.loss(lessons.draw(step, course.size), picture, alignment, noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(understanding.parameters(), 1.0)
        optimizer.step()
        tell(step + 1, loss.item())
        if (step + 1) % course.save_every == 0 or step + 1 == course.steps:
            whole = {"weights": understanding.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            begun = saved.with_suffix(".begun")
            torch.save(whole, begun)
            begun.replace(saved)
