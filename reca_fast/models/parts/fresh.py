"""Parts of a model that no checkpoint holds: every run makes them anew."""

from torch import nn


class Fresh(nn.Module):
    """A module that begins with weights of this project's own and has to be learned as a whole. Levers that freeze what
    was learned before (adapters) leave it trained.
    """
