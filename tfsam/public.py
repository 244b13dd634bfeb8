"""The public names of tfsam, which `import tfsam` provides.

Importing this module imports TensorFlow and registers tfsam's classes with
Keras, so that saved models can be loaded.
"""

import os

if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
    raise ImportError(
        "tfsam needs Keras on TensorFlow: set KERAS_BACKEND=tensorflow. "
        f"Received: KERAS_BACKEND={os.environ['KERAS_BACKEND']}"
    )

import keras

if keras.config.backend() != "tensorflow":
    raise ImportError(
        'tfsam needs Keras on TensorFlow: set "backend" to "tensorflow" in '
        "keras.json, or KERAS_BACKEND=tensorflow. "
        f"Received: backend={keras.config.backend()}"
    )

from tfsam import attacks
from tfsam import corruptions
from tfsam import data
from tfsam import models
from tfsam import networks
from tfsam import reports
from tfsam import weights
from tfsam.attacks import FGSM
from tfsam.attacks import NFGSM
from tfsam.attacks import PGD
from tfsam.attacks import FreeAT
from tfsam.attacks.bpda import BPDA
from tfsam.attacks.bpda import bpda
from tfsam.evaluation import verdicts
from tfsam.evaluation.corrupted import evaluate_corruptions
from tfsam.evaluation.landscape import Landscape
from tfsam.evaluation.measure import evaluate
from tfsam.evaluation.merging import merge
from tfsam.reports import page
from tfsam.training.averages import EMA
from tfsam.training.averages import SWA
from tfsam.training.collapse import StopAtCollapse
from tfsam.training.entropy_sgd import EntropySGD
from tfsam.training.ikl import IKL
from tfsam.training.model import RobustModel
from tfsam.training.objectives import MART
from tfsam.training.objectives import TRADES
from tfsam.training.objectives import Objective
from tfsam.training.optimizers import SGD
from tfsam.training.robust_validation import RobustValidation
from tfsam.training.score import SCORE
from tfsam.weights import ASAM
from tfsam.weights import AWP
from tfsam.weights import ESAM
from tfsam.weights import FSAM
from tfsam.weights import GSAM
from tfsam.weights import MSAM
from tfsam.weights import SAM
from tfsam.weights import SSAM
from tfsam.weights import WSAM
from tfsam.weights import FriendlySAM
from tfsam.weights import LookSAM
from tfsam.weights import VaSSO
from tfsam.weights import WeightPerturbation

__all__ = [
    "ASAM",
    "AWP",
    "BPDA",
    "EMA",
    "ESAM",
    "FGSM",
    "FSAM",
    "GSAM",
    "IKL",
    "MART",
    "MSAM",
    "NFGSM",
    "PGD",
    "SAM",
    "SCORE",
    "SGD",
    "SSAM",
    "SWA",
    "TRADES",
    "WSAM",
    "EntropySGD",
    "FreeAT",
    "FriendlySAM",
    "Landscape",
    "LookSAM",
    "Objective",
    "RobustModel",
    "RobustValidation",
    "StopAtCollapse",
    "VaSSO",
    "WeightPerturbation",
    "attacks",
    "bpda",
    "corruptions",
    "data",
    "evaluate",
    "evaluate_corruptions",
    "merge",
    "models",
    "networks",
    "page",
    "reports",
    "verdicts",
    "weights",
]
