"""A corruption of another package, which imports nothing of tfsam."""


class Veil:
    """Covers an image with a gray veil.

    Args:
        value: the gray of the veil, in [0, 1].
    """

    def __init__(self, value=0.5):
        self.value = value

    def __call__(self, image, severity, rng):
        weight = severity / 5
        return image + weight * (self.value - image)
