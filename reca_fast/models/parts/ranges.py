"""Ranges of the sizes that networks have, for the fields of their configurations.

The upper ends are some ten times what the largest models of their kind have: a damaged file must not keep a machine
busy for minutes before it is refused.
"""

from typing import Annotated

from reca_fast.schema import Range

Layers = Annotated[int, Range(1, 256)]
Heads = Annotated[int, Range(1, 1024)]
Width = Annotated[int, Range(1, 2**18)]
Side = Annotated[int, Range(1, 256)]
"""Of a grid or a patch, in cells or pixels."""
Epsilon = Annotated[float, Range(above=0, at_most=1)]
"""What a norm adds to a variance before it divides by its root."""
RGB = Annotated[int, Range(3, 3)]
"""Channels of a picture."""
