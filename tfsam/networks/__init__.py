"""Networks built from stock Keras layers.

The networks take pixels in [0, 1] and return logits. Their first layer
normalises each channel, so that an attack's epsilon is in the units of the
pixels. Their `.keras` files and SavedModels load without tfsam.

The layout is always (batch, height, width, channels), as in tfsam's data and in
evaluations, regardless of `keras.config.image_data_format()`.
"""

from tfsam.networks.pixel_statistics import (
    CIFAR10_STATISTICS as CIFAR10_STATISTICS,
)
from tfsam.networks.pixel_statistics import (
    CIFAR100_STATISTICS as CIFAR100_STATISTICS,
)
from tfsam.networks.pixel_statistics import Statistics as Statistics
from tfsam.networks.residual import preact_resnet8 as preact_resnet8
from tfsam.networks.residual import preact_resnet18 as preact_resnet18
from tfsam.networks.residual import wide_resnet as wide_resnet
from tfsam.networks.vision_transformer import (
    vision_transformer as vision_transformer,
)
