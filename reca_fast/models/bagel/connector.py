"""The connector: features of the vision tower become tokens of the language model."""

import torch.nn.functional as F
from torch import Tensor, nn


class Connector(nn.Module):
    """Two linear layers with a tanh-approximated GELU between them.

    Args:
        vision_size: width of the vision tower.
        hidden_size: width of the language model.
    """

    def __init__(self, vision_size: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_size, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """[N, vision_size] -> [N, hidden_size]."""
        tokens: Tensor = self.fc2(F.gelu(self.fc1(features), approximate="tanh"))
        return tokens
