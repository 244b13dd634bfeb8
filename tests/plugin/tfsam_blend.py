"""An objective of another package, which imports nothing of tfsam."""

import keras


@keras.saving.register_keras_serializable(package="tfsam_blend")
class Blend:
    """A blend of the losses of clean and perturbed inputs.

    Args:
        clean: the weight of the clean loss, in [0, 1].
    """

    source = "a kitchen, 2026"
    needs_attack = True
    passes = 2

    def __init__(self, clean=0.5):
        self.clean = clean

    def __call__(self, model, batch):
        perturbed = model(batch.x_adv, training=True)
        with model.unrecorded():
            clean = model(batch.x, training=True)
        loss = self.clean * self._loss(model, batch, clean)
        loss += (1 - self.clean) * self._loss(model, batch, perturbed)
        return loss, perturbed

    def _loss(self, model, batch, y_pred):
        return model.compute_loss(
            x=batch.x,
            y=batch.y,
            y_pred=y_pred,
            sample_weight=batch.sample_weight,
            training=True,
        )

    def get_config(self):
        return {"clean": self.clean}

    @classmethod
    def from_config(cls, config):
        return cls(**config)
