"""How a module's tensors are called in a file: a table of patterns instead of code that builds names."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

Rule = tuple[str, str]
"""Pattern of a name in the module, pattern of the key in the file."""
_PLACE = re.compile(r"\{(\w+)(?::([^}]+))?\}|(\*)")


@dataclass(frozen=True)
class NameTable:
    """The names of a module's tensors, and under which keys a file holds them.

    A rule is a pair of patterns, for the module and for the file. In a pattern `{word}` stands for one part of a name
    (what is between two dots), `{word:a|b}` for one of the alternatives, and `*` at the end for all the rest:

        NameTable((
            ("norm.*", "language_model.norm.*"),
            ("layers.{i}.{p:q_proj|k_proj}.{kind}", "language_model.layers.{i}.self_attn.{p}.{kind}"),
        ))

    calls the module's `layers.3.q_proj.weight` `language_model.layers.3.self_attn.q_proj.weight`. The first rule that
    fits a name counts; a name that no rule fits is a fault of the table.

    Args:
        rules: see above.
        under: the prefix that all keys of this module have in the file. A key there that belongs to no tensor of the
            module is unexpected; keys elsewhere are another module's.
        others: prefixes of keys that are another module's although they lie below `under`.
        ignored: keys that a file may hold and that nobody reads.
        convolutions: patterns of module names whose tensor [M, N] the file holds as a 1x1 convolution [M, N, 1, 1].
    """

    rules: tuple[Rule, ...]
    under: str = ""
    others: tuple[str, ...] = ()
    ignored: frozenset[str] = frozenset()
    convolutions: tuple[str, ...] = ()

    def key(self, name: str) -> str:
        """The key in the file of the tensor that the module calls `name`.

        Raises:
            KeyError: no rule fits the name.
        """
        for own, public in self.rules:
            if match := _matcher(own).fullmatch(name):
                return _filled_in(public, match.groupdict())
        raise KeyError(f"the name table has no rule for {name}")

    def keys(self, names: Iterable[str]) -> dict[str, str]:
        """Key in the file -> name in the module, for all these names: the table read in the other direction.

        Raises:
            KeyError: no rule fits one of the names.
            ValueError: two names have one key.
        """
        names = list(names)
        keys = {self.key(name): name for name in names}
        if len(keys) != len(names):
            raise ValueError("the name table gives two tensors one key")
        return keys

    def has(self, key: str) -> bool:
        """Whether a key of the file is meant for this module: known or, if no tensor fits it, unexpected."""
        return key.startswith(self.under) and not key.startswith(self.others) and key not in self.ignored

    def stored_shape(self, name: str, shape: Iterable[int]) -> tuple[int, ...]:
        """The shape in the file of the tensor that the module calls `name` and that has this shape there."""
        is_convolution = any(_matcher(pattern).fullmatch(name) for pattern in self.convolutions)
        return (*shape, 1, 1) if is_convolution else tuple(shape)

    def within(self, *, module: str = "", file: str = "") -> "NameTable":
        """The same table for a module that is part of another one or of a larger file, below these prefixes."""
        return replace(
            self,
            rules=prefixed(self.rules, module, file),
            under=file + self.under,
            others=tuple(file + other for other in self.others),
            ignored=frozenset(file + key for key in self.ignored),
            convolutions=tuple(module + pattern for pattern in self.convolutions),
        )


def prefixed(rules: Iterable[Rule], module: str, file: str) -> tuple[Rule, ...]:
    """These rules with a prefix before the name in the module and one before the key in the file."""
    return tuple((module + own, file + public) for own, public in rules)


SAME_NAMES = NameTable((("*", "*"),))
"""The table of a file that calls every tensor as the module does."""


def _filled_in(pattern: str, words: Mapping[str, str]) -> str:
    """The name that a pattern becomes when these words stand in its places."""
    return _PLACE.sub(lambda place: words[place[1] or "rest"], pattern)


@lru_cache(maxsize=4096)
def _matcher(pattern: str) -> re.Pattern[str]:
    """A pattern of names as a regular expression, a group for each place in it."""
    expression, end = "", 0
    for place in _PLACE.finditer(pattern):
        word, alternatives, rest = place.groups()
        if rest:
            group = "(?P<rest>.*)"
        else:
            choices = "|".join(map(re.escape, alternatives.split("|"))) if alternatives else r"[^.]+"
            group = f"(?P<{word}>{choices})"
        expression += re.escape(pattern[end : place.start()]) + group
        end = place.end()
    return re.compile(expression + re.escape(pattern[end:]))
