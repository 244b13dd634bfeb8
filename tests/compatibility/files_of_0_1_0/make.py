"""The files in this folder, as tfsam 0.1.0 wrote them.

Run it with tfsam 0.1.0 (commit 014f636) on PYTHONPATH, not with newer code, and
with the arguments `FOLDER files`, then `FOLDER finished`, then `FOLDER killed`.
Then remove `lock` and `tensorboard/`, which name the machine, from the last.
"""

import json
import os
import pathlib
import shutil
import signal
import sys

import keras
import numpy as np

import tfsam
from tfsam import callbacks
from tfsam import run
from tfsam import training
from tfsam.attacks import art
from tfsam.attacks import cleverhans
from tfsam.attacks import foolbox

FOLDER = pathlib.Path(sys.argv[1])
RUN = (
    "--method=at_sam",
    "--steps=2",
    "--average=ema",
    "--epochs=3",
    "--batch_size=32",
    "--limit_train=96",
    "--limit_test=40",
    "--checkpoint_steps=1",
    "--attacks=pgd,noise_linf",
    "--attack_steps=2",
    "--linf_epsilons=0.05,0.1",
    "--l2_epsilons=",
)
DIGITS = tfsam.data.load("digits")
X, Y = DIGITS.x_test[:40], DIGITS.y_test[:40]


def tiny(classes, input_shape, statistics=None):
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(momentum=0.8),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(classes),
        ]
    )


def compiled(**parts):
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model = tfsam.RobustModel(network, **parts)
    model.compile(
        tfsam.SGD(0.1, momentum=0.9, weight_decay=5e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def fitted(name, callbacks=(), **parts):
    """Saves a model after a fit; its logits, and its loss of a step more."""
    model = compiled(**parts)
    model.fit(X, Y, batch_size=20, verbose=0, callbacks=list(callbacks))
    model.save(FOLDER / f"{name}.keras")
    found = {f"{name}/logits": model.network.predict(X, verbose=0)}
    found[f"{name}/loss"] = model.train_on_batch(X, Y)[0]
    for number, weight in enumerate(model.network.get_weights()):
        found[f"{name}/after/{number}"] = weight
    return found


def every_part():
    """Everything that 0.1.0 registers, as a `.keras` file describes it."""
    parts = [tfsam.attacks.get(n, epsilon=0.1) for n in NATIVE]
    parts += [tfsam.attacks.get(n, epsilon=0.5, norm="l2") for n in IN_L2]
    parts += [kind() for kind in KINDS]
    parts += [kind(0.1) for kind in IN_LINF]
    parts.append(cleverhans.CarliniWagner(0.5, norm="l2"))
    return [keras.saving.serialize_keras_object(part) for part in parts]


NATIVE = [
    *("apgd_ce", "apgd_dlr", "apgd_t", "autoattack", "fab_t", "fgsm"),
    *("fgsm_rs", "fmn", "noise_linf", "pgd", "pgd_cw", "pgd_dlr", "pgd_kl"),
    *("pgd_t", "square"),
]
IN_L2 = ["autoattack", "noise_l2", "pgd", "square"]
KINDS = [
    *(tfsam.SAM, tfsam.ASAM, tfsam.ESAM, tfsam.LookSAM, tfsam.SSAM),
    *(tfsam.FSAM, tfsam.GSAM, tfsam.AWP, tfsam.TRADES, tfsam.MART),
    *(tfsam.SGD, tfsam.EntropySGD),
]
IN_LINF = [
    *(cleverhans.BIM, cleverhans.FGM, cleverhans.MIM, cleverhans.PGD),
    *(cleverhans.SPSA, art.ART, foolbox.Foolbox),
]


def evaluated(network):
    """An evaluation in two shards and as a whole, and all that it found."""

    def evaluate(name, **shard):
        folder = FOLDER / "record" / name
        tfsam.evaluate(
            network,
            (X, Y),
            attacks=["pgd", "noise_linf"],
            norm="linf",
            epsilons=[0.05, 0.1],
            batch_size=20,
            workdir=folder,
            **shard,
        )
        return folder

    folders = [evaluate(str(shard), shard=(shard, 2)) for shard in range(2)]
    merged = tfsam.merge(folders)
    (FOLDER / "merged.json").write_text(json.dumps(merged, indent=2) + "\n")
    verdicts = tfsam.verdicts.load(evaluate("whole"))
    return {f"{name} {e}": column for (name, e), column in verdicts.items()}


def kill(self, batch, logs=None):
    if int(self.model.optimizer.iterations) == 5:
        os.kill(os.getpid(), signal.SIGKILL)


def finished():
    assert run.main([*RUN, f"--workdir={FOLDER / 'finished'}"]) == 0
    for name in ("saved_model", "tensorboard", "average", "checkpoints"):
        shutil.rmtree(FOLDER / "finished" / name, ignore_errors=True)
    for name in ("robustness.png", "examples.png", "lock"):
        (FOLDER / "finished" / name).unlink()


def killed():
    """The same run, killed in its second epoch."""
    callbacks.StopAtNaN.on_train_batch_end = kill
    run.main([*RUN, f"--workdir={FOLDER / 'killed'}"])


def files():
    FOLDER.mkdir(parents=True)
    pgd = {"steps": 2, "random_start": False}
    expected = fitted(
        "sam",
        perturb_inputs=tfsam.PGD(0.1, **pgd),
        perturb_weights=tfsam.SAM(0.1),
    )
    expected |= fitted(
        "trades",
        callbacks=[tfsam.EMA(0.9)],
        perturb_inputs=tfsam.PGD(0.1, loss="kl", **pgd),
        perturb_weights=tfsam.AWP(gamma=0.005),
        objective=tfsam.TRADES(beta=6),
    )
    model = keras.saving.load_model(FOLDER / "sam.keras")
    expected |= evaluated(model.network)
    np.savez_compressed(FOLDER / "expected.npz", **expected)
    text = json.dumps(every_part(), indent=1)
    (FOLDER / "parts.json").write_text(text + "\n")


if __name__ == "__main__":
    training.NETWORKS["preact_resnet8"] = tiny
    {"files": files, "finished": finished, "killed": killed}[sys.argv[2]]()
