"""The benchmark's networks in PyTorch, for the libraries that attack those.

Random weights: only the time of a pass counts, and it is that of the same
layers, sizes and channels.
"""

import torch
from torch import nn
from torch.nn import functional


class _Block(nn.Module):
    """Two convolutions, each after BatchNorm and ReLU, and a way around."""

    def __init__(self, before, channels, stride):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.around = None
        if stride != 1 or before != channels:
            self.around = nn.Conv2d(before, channels, 1, stride, bias=False)

    def forward(self, x):
        out = functional.relu(self.norm1(x))
        around = x if self.around is None else self.around(out)
        out = self.conv1(out)
        return self.conv2(functional.relu(self.norm2(out))) + around


class PreActResNet18(nn.Module):
    """As `tfsam.networks.preact_resnet18`: four stages of two blocks."""

    def __init__(self, classes, width):
        super().__init__()
        layers = [nn.Conv2d(3, width, 3, 1, 1, bias=False)]
        before = width
        for stage in range(4):
            for block in range(2):
                stride = 2 if stage and not block else 1
                layers.append(_Block(before, width * 2**stage, stride))
                before = width * 2**stage
        self.body = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(before)
        self.dense = nn.Linear(before, classes)

    def forward(self, x):
        """Pixels (batch, channels, height, width) to logits."""
        out = functional.relu(self.norm(self.body((x - 0.5) / 0.25)))
        return self.dense(out.mean(dim=(2, 3)))


def digits_cnn(weights):
    """The CNN of the reference, with its weights.

    Args:
        weights: arrays by layer, "conv1/kernel" and so on, as Keras has them.
    """
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        _Flatten(),
        nn.Linear(512, 10),
    )
    for layer, name in ((0, "conv1"), (2, "conv2"), (5, "dense")):
        kernel = torch.tensor(weights[f"{name}/kernel"])
        order = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
        model[layer].weight.data = kernel.permute(order).contiguous()
        model[layer].bias.data = torch.tensor(weights[f"{name}/bias"])
    return model.eval()


class _Flatten(nn.Module):
    """Height, width, channels, in this order."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)
