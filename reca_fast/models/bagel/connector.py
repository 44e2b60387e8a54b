"""The connector between the vision tower and the language model."""

import torch.nn.functional as F
from torch import Tensor, nn


class Connector(nn.Module):
    """Vision width to language width: fc2(gelu_tanh(fc1(x)))."""

    def __init__(self, vision_size: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_size, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """[N, vision_size] -> [N, hidden_size]."""
        return self.fc2(F.gelu(self.fc1(features), approximate="tanh"))
