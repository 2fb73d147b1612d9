"""A recurrent network: one GRU layer (Cho et al. 2014, equations 5 to 8) of 64 units, and a linear layer after it.

The paper's table 4 names an RNN and says no more of it. To classify, a slice's rows are the steps, each the pixels
of that row in every band; for `windows`, a step is one reading of every sensor. The width factor scales the 64.

Any size from 1x1; a network reads rows (and windows) of the length it was made for, and any number of them.
"""

from torch import Tensor, nn

from toolkit.baselines.parts import scaled

TASKS = ("classify", "windows")
HIDDEN = 64


class RNN(nn.Module):
    """Input: float slices (N, bands, H, W) or windows (N, T, m). Output: logits (N, classes), from the last step."""

    def __init__(self, features: int, classes: int, width: float) -> None:
        super().__init__()
        hidden = scaled(HIDDEN, width)
        self.gru = nn.GRU(features, hidden, batch_first=True)
        self.logits = nn.Linear(hidden, classes)

    def forward(self, image: Tensor) -> Tensor:
        steps = image.permute(0, 2, 1, 3).flatten(2) if image.ndim == 4 else image
        logits: Tensor = self.logits(self.gru(steps)[0][:, -1])
        return logits


def build(task: str, bands: int, size: int, classes: int, width: float) -> nn.Module:
    """See `toolkit.baselines.make`."""
    return RNN(bands * size if task == "classify" else bands, classes, width)
