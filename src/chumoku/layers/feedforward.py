"""The position-wise part of a block: plain (1706.03762, eq. 2) and gated (Shazeer, 2002.05202)."""

from __future__ import annotations

from torch import Tensor, nn

from chumoku.layers.dropout import Dropout
from chumoku.layers.ops import ACTIVATIONS, gated, linear, project
from chumoku.layers.taps import Tap


class FeedForward(nn.Module):
    """down(f(up(x))); `dropout` acts on the hidden layer, for papers that have it there."""

    def __init__(
        self, width: int, hidden: int, activation: str, *, bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)
        self.activation = ACTIVATIONS[activation]
        self.dropout = Dropout(dropout)
        self.hidden = Tap()

    def forward(self, x_BTD: Tensor) -> Tensor:
        hidden_BTF = self.hidden(self.activation(linear(x_BTD, self.up)))
        return linear(self.dropout(hidden_BTF), self.down)


class GatedFeedForward(nn.Module):
    """down(f(gate(x)) * up(x))."""

    def __init__(
        self, width: int, hidden: int, activation: str, *, bias: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=bias)
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)
        self.activation = ACTIVATIONS[activation]
        self.dropout = Dropout(dropout)
        self.hidden = Tap()

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = project(x_BTD, self.gate, self.up)
        hidden_BTF = self.hidden(
            gated(gate_BTF, up_BTF, self.activation, watched=self.hidden.watched)
        )
        return linear(self.dropout(hidden_BTF), self.down)
