"""The benchmarks' networks and training steps in PyTorch.

Weights are random: only the time of a pass matters, and it depends on layers,
sizes and channels alone.
"""

import torch
from torch import nn
from torch.nn import functional


class _Block(nn.Module):
    """Two convolutions, each after BatchNorm and ReLU, and a shortcut."""

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
    """A PreActResNet-18 in PyTorch: four stages of two blocks."""

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
        """Maps pixels (batch, channels, height, width) to logits."""
        out = functional.relu(self.norm(self.body((x - 0.5) / 0.25)))
        return self.dense(out.mean(dim=(2, 3)))


class Training:
    """Repeated training steps of one network on the same batch.

    Args:
        network: a module from pixels to logits.
        x: float tensor (batch, channels, height, width), in [0, 1].
        y: int64 tensor (batch,).
    """

    def __init__(self, network, x, y):
        self.network = network
        self.x = x
        self.y = y
        self.weights = list(network.parameters())
        self.momentums = [torch.zeros_like(w) for w in self.weights]

    def st(self):
        """Takes a step of standard training."""
        self._differentiate(self.x)
        self._descend()

    def sam(self, rho=0.1):
        """Takes a step of SAM (Foret et al., 2021), both in training mode.

        Args:
            rho: radius of the ball of weights.
        """
        self._differentiate(self.x)
        kept = [weight.detach().clone() for weight in self.weights]
        norms = torch.stack([weight.grad.norm() for weight in self.weights])
        scale = rho / (norms.norm() + 1e-12)
        with torch.no_grad():
            for weight in self.weights:
                weight.add_(scale * weight.grad)
        self._differentiate(self.x)
        with torch.no_grad():
            for weight, value in zip(self.weights, kept, strict=True):
                weight.copy_(value)
        self._descend()

    def at(self):
        """Takes a step on PGD's images, differentiated by the images alone."""
        self._differentiate(self.attacked())
        self._descend()

    def at_with_weight_gradients(self):
        """Takes the same step; the attack also computes weight gradients.

        So does the code of the paper (Wei et al., 2023), which does not use
        them either.
        """
        self._differentiate(self.attacked(weight_gradients=True))
        self._descend()

    def attacked(
        self,
        epsilon=8 / 255,
        steps=5,
        step_size=2 / 255,
        weight_gradients=False,
    ):
        """Returns PGD's images (Madry et al., 2018), l-inf, inference mode.

        Args:
            epsilon: the largest perturbation.
            steps: number of gradients.
            step_size: length of each step.
            weight_gradients: whether each gradient is the weights', too.
        """
        self.network.eval()
        noise = torch.empty_like(self.x).uniform_(-epsilon, epsilon)
        x_adv = (self.x + noise).clamp(0, 1)
        for _ in range(steps):
            x_adv.requires_grad_()
            loss = self._loss(x_adv)
            if weight_gradients:
                loss.backward()
                slope = x_adv.grad
            else:
                (slope,) = torch.autograd.grad(loss, x_adv)
            moved = x_adv.detach() + step_size * slope.sign()
            offset = (moved - self.x).clamp(-epsilon, epsilon)
            x_adv = (self.x + offset).clamp(0, 1)
        self.network.train()
        return x_adv

    def _differentiate(self, x):
        for weight in self.weights:
            weight.grad = None
        self._loss(x).backward()

    @torch.no_grad()
    def _descend(self, learning_rate=0.1, momentum=0.9, weight_decay=5e-4):
        """Descends as `torch.optim.SGD` on a CPU, operation by operation.

        The original loads Triton; its LLVM aborts in TensorFlow's process.
        """
        for weight, buffer in zip(self.weights, self.momentums, strict=True):
            gradient = weight.grad.add(weight, alpha=weight_decay)
            buffer.mul_(momentum).add_(gradient)
            weight.add_(buffer, alpha=-learning_rate)

    def _loss(self, x):
        return functional.cross_entropy(self.network(x), self.y)


def digits_cnn(weights):
    """Returns the CNN of the reference, with its weights.

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


def sequential(model):
    """Returns the PyTorch copy of a Keras model of a chain of layers.

    Args:
        model: a keras.Sequential of Conv2D, ZeroPadding2D, Flatten, Dense and
            ReLU layers. A convolution may pad with zeros, at stride 1, and
            convolutions and dense layers may end in ReLU.

    Raises:
        ValueError: if the model has another layer.
    """
    layers = []
    for layer in model.layers:
        kind = type(layer).__name__
        if kind == "Conv2D":
            layers += _convolution(layer)
        elif kind == "Dense":
            layers.append(nn.Linear(*layer.kernel.shape))
            _load(layers[-1], layer, (1, 0))
        elif kind == "ZeroPadding2D":
            (top, bottom), (left, right) = layer.padding
            layers.append(nn.ZeroPad2d((left, right, top, bottom)))
        elif kind == "Flatten":
            layers.append(_Flatten())
        elif kind != "ReLU":
            raise ValueError(
                f"the layers must be convolutions and dense ones. Received: "
                f"layer={layer.name}, a {kind}"
            )
        activation = getattr(layer, "activation", None)
        if kind == "ReLU" or getattr(activation, "__name__", "") == "relu":
            layers.append(nn.ReLU())
    return nn.Sequential(*layers).eval()


def _convolution(layer):
    """Returns a convolution with its padding as PyTorch layers."""
    height, width, before, after = layer.kernel.shape
    if layer.padding == "same" and layer.strides != (1, 1):
        raise ValueError(
            "a convolution of stride 2 must have its padding in a layer. "
            f"Received: layer={layer.name}"
        )
    found = nn.Conv2d(
        before, after, (height, width), layer.strides, layer.padding
    )
    _load(found, layer, (3, 2, 0, 1))
    return [found]


def _load(found, layer, axes):
    """Copies the kernel, its axes in PyTorch's order, and the bias."""
    with torch.no_grad():
        kernel = layer.kernel.numpy().transpose(axes)
        found.weight.copy_(torch.tensor(kernel.copy()))
        found.bias.copy_(torch.tensor(layer.bias.numpy()))


class _Flatten(nn.Module):
    """Height, width, channels, in this order."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)
