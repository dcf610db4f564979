"""The data, how it is split, and the network. Nothing here knows of federated learning."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

Examples = tuple[Tensor, Tensor]
"""Images of shape (n, 1, 8, 8), float32 between 0 and 1, and digits of shape (n,)."""

TEST_SHARE = 5  # one example of so many is the server's


class ConvNet(nn.Module):
    """Two convolutions and a linear layer, some 10,000 parameters, and the statistics of a batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Scores of shape (n, 10)."""
        scores: Tensor = self.layers(images)
        return scores


def test_data(seed: int) -> Examples:
    """What the server holds back."""
    images, labels = _shuffled(seed)
    return images[::TEST_SHARE], labels[::TEST_SHARE]


def node_data(partition: int, partitions: int, seed: int) -> Examples:
    """The examples of one node: each partition-th of those that the server does not have."""
    images, labels = _shuffled(seed)
    rest = torch.arange(len(labels)) % TEST_SHARE != 0
    return images[rest][partition::partitions], labels[rest][partition::partitions]


def initial_model(seed: int) -> ConvNet:
    """The network before training."""
    torch.manual_seed(seed)
    return ConvNet()


def train(model: ConvNet, examples: Examples, *, epochs: int, rate: float, batch: int, seed: int) -> float:
    """Stochastic gradient descent with momentum; the mean loss of the last epoch."""
    images, labels = examples
    shuffle = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    loss_of = nn.CrossEntropyLoss()
    total = 0.0
    model.train()
    for _ in range(epochs):
        total = 0.0
        # A last batch of one example would have no variance to normalise by.
        for chosen in torch.randperm(len(labels), generator=shuffle).split(batch):
            if len(chosen) < 2:
                continue
            optimizer.zero_grad()
            loss = loss_of(model(images[chosen]), labels[chosen])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(chosen)
    return total / len(labels)


@torch.no_grad()
def evaluate(model: ConvNet, examples: Examples) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    images, labels = examples
    model.eval()
    scores = model(images)
    loss = nn.functional.cross_entropy(scores, labels)
    return loss.item(), (scores.argmax(1) == labels).float().mean().item()


def _shuffled(seed: int) -> Examples:
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shaped = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return shaped[order], torch.tensor(labels, dtype=torch.int64)[order]
