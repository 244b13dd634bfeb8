"""Runs to make pages of: complete, minimal, and with hostile names."""

import json
import shutil

import numpy as np
from helpers import accuracy
from helpers import leave
from helpers import results_of
from helpers import robust

EVIL = "<img src=x onerror=alert(1)>"
SCRIPT = "</script><script>document.title = 'no'</script>"


def evaluation(network, rows, **others):
    config = {"evaluate": str(network), "method": None}
    return results_of(
        None, accuracy(5, 5), rows, config=config, train=None, **others
    )


def leave_three(folder):
    """A run with all files, one with the fewest, one with a hostile name."""
    full = leave(
        folder / "full",
        results_of(
            "sam",
            accuracy(10),
            [
                robust("pgd", "linf", 0.2, 3, median_distance=0.15),
                robust("pgd", "linf", 0.1, 7),
                robust("pgd", "l2", 0.5, 9),
            ],
            config={"rho": 0.1},
        ),
    )
    (full / "history.csv").write_text(
        "epoch,seconds,step_seconds_median,accuracy,loss,val_robust_accuracy\n"
        "1,10,0.1,0.25,2.0,\n2,10,0.1,0.75,nan,0.5\n"
    )
    (full / "flatness.json").write_text(
        json.dumps(
            {
                "measures": {"largest_eigenvalue": 12.5, "worst_rise": None},
                "surface": {
                    "coordinates": [-1, 0, 1],
                    "loss": [[4, 2, 4], [2, 1, 2], [4, 2, float("nan")]],
                },
                "n": 100,
            }
        )
    )
    clean = np.zeros((2, 4, 4, 3), "float32")
    np.savez(
        full / "examples.npz",
        clean=clean,
        adversarial=clean + 0.1,
        before=["cat", EVIL],
        after=["dog", EVIL],
        attack="pgd",
        norm="linf",
        epsilon=0.1,
    )
    leave(
        full / "autoattack",
        evaluation(
            full / "model.keras", [robust("autoattack", "linf", 0.1, 2, 5)]
        ),
    )
    leave(
        folder / "least",
        {
            "schema": 1,
            "natural": accuracy(8),
            "robust": [robust("pgd", "linf", 0.1, 8)],
        },
    )
    evil = leave(
        folder / EVIL,
        results_of(
            SCRIPT,
            accuracy(9),
            [
                robust("pgd", "linf", 0.1, 5)
                | {"accuracy": None, "error": SCRIPT},
                robust(EVIL, "l2", 0.5, 4),
            ],
            warnings=[{"warning": "few_classes", "message": SCRIPT}],
            config={"rho": 0.2, EVIL: SCRIPT},
        ),
    )
    shutil.copy(full / "examples.npz", evil)
    (full / "examples.png").write_bytes(b"not used")
    return folder
