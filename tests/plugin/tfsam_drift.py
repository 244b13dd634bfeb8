"""A weight perturbation of one pass, which imports nothing of tfsam."""

import keras


@keras.saving.register_keras_serializable(package="tfsam_drift")
class Drift:
    """Moves the weights of the only pass against the momentum.

    Args:
        rho: how far the weights move, in units of the momentum.
        back: the part of the way that the weights move back by after the
            step, in units of the gradient.
    """

    summary = "a pass downstream, and a small step back"
    source = "a river, 2026"
    extra_passes = 0.0
    init = select = combine = None

    def __init__(self, rho=0.05, back=0.25):
        self.rho = rho
        self.back = back

    def before(self, weights, momentum, state, step):
        if momentum is None:
            return weights
        pairs = zip(weights, momentum, strict=True)
        return [w - self.rho * m for w, m in pairs]

    def due(self, state, step):
        return False

    def perturb(self, weights, gradients, state, step):
        return weights, state

    def after(self, weights, gradients, perturbed_gradients, state, step):
        pairs = zip(weights, gradients, strict=True)
        return [w + self.back * self.rho * g for w, g in pairs]

    def get_config(self):
        return {"rho": self.rho, "back": self.back}

    @classmethod
    def from_config(cls, config):
        return cls(**config)
