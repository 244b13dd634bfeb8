"""The flags of training and of its attack."""

from tfsam.runs.flag_types import MOST_REPETITIONS
from tfsam.runs.flag_types import Flag
from tfsam.runs.flag_types import boolean
from tfsam.runs.flag_types import integer
from tfsam.runs.flag_types import number
from tfsam.runs.flag_types import one_of

TRAINING = "Training"
ATTACK = "Training's attack"

# The steps of an ascent are traced one by one.
_MOST_ASCENT_STEPS = 100

FLAGS: dict[str, Flag] = {
    "method": Flag(
        TRAINING,
        "Method of training, listed below; --methods prints the table of all "
        "methods with their flags and costs.",
    ),
    "perturb_weights": Flag(
        TRAINING,
        "Perturbation of the weights, which replaces the method's: a name, "
        "a name with options such as looksam:alpha=0.3:every=5, or none.",
    ),
    "objective": Flag(
        TRAINING,
        "Objective of training, which replaces the method's: {objectives}, "
        "with options such as trades:beta=3, or none.",
    ),
    "optimizer": Flag(
        TRAINING,
        "Optimizer, which replaces the method's: {optimizers}, with options "
        "such as adamw:beta_2=0.95. The learning rate, momentum and "
        "weight decay of the preset are for sgd and entropy_sgd; others have "
        "Keras's defaults.",
    ),
    "average": Flag(
        TRAINING,
        "Average of the weights, which replaces the method's: ema, swa or "
        "none. The average is the network that is validated, exported and "
        "attacked.",
    ),
    "rho": Flag(
        TRAINING,
        "Radius of the perturbation of the weights, for SAM and its variants.",
        number,
    ),
    "eta": Flag(
        TRAINING,
        "ASAM: added to |w|. FSAM: weight of the Fisher information.",
        number,
    ),
    "adaptive": Flag(
        TRAINING,
        "ASAM: the weights whose size scales the perturbation, kernels or all.",
    ),
    "ascent_steps": Flag(
        TRAINING,
        "SAM: number of ascent steps.",
        integer,
        most=_MOST_ASCENT_STEPS,
    ),
    "alpha": Flag(
        TRAINING,
        "GSAM: weight of the surrogate gap. LookSAM: weight of the direction "
        "that is reused.",
        number,
    ),
    "rho_min": Flag(TRAINING, "GSAM: rho at the lowest learning rate.", number),
    "every": Flag(
        TRAINING,
        "LookSAM: steps between two computations of the perturbation.",
        integer,
    ),
    "weight_fraction": Flag(
        TRAINING, "ESAM: fraction of the weight tensors to perturb.", number
    ),
    "sample_fraction": Flag(
        TRAINING,
        "ESAM: fraction of the batch used by the second pass.",
        number,
    ),
    "sparsity": Flag(
        TRAINING, "SSAM: fraction of the weights left unperturbed.", number
    ),
    "mask": Flag(
        TRAINING,
        "SSAM: kind of mask, fisher (SSAM-F) or dynamic (SSAM-D).",
    ),
    "refresh_every": Flag(
        TRAINING,
        "SSAM: steps between two masks. The default is 5 epochs.",
        integer,
    ),
    "gamma": Flag(
        TRAINING,
        "AWP: size of the perturbation relative to the kernel's. WSAM: weight "
        "of the sharpness.",
        number,
    ),
    "sub_batches": Flag(
        TRAINING,
        "m-sharpness: number of parts of the batch, each with its own "
        "perturbation of the weights.",
        integer,
        least=0,
    ),
    "sharpness": Flag(
        TRAINING,
        "Gradient that perturbs the weights on several devices: each "
        "device's own, or the gradient of the whole batch.",
        choices=one_of("per_replica", "global"),
    ),
    "beta": Flag(
        TRAINING,
        "TRADES, MART, IKL, SCORE: weight of the distance between the "
        "predictions for clean and perturbed images.",
        number,
    ),
    "inner_steps": Flag(
        TRAINING,
        "Entropy-SGD: number of gradients per step.",
        integer,
        least=0,
    ),
    "average_momentum": Flag(
        TRAINING, "EMA: momentum of the moving average.", number
    ),
    "average_start": Flag(
        TRAINING,
        "SWA: first epoch that is averaged, counted from 0. The default is "
        "at 75 % of the epochs.",
        integer,
    ),
    "network": Flag(
        TRAINING,
        "Network to train: {networks}, with options such as "
        "wide_resnet:depth=16; keras:NAME, a class of keras.applications, "
        "such as keras:MobileNetV2:alpha=0.35; the path of a .keras or HDF5 "
        "file, which is trained further, under a new head if it has another "
        "number of classes; or MODULE:FUNCTION, a function of yours.",
    ),
    "weights": Flag(
        TRAINING,
        "File of weights that the network begins with; imagenet for keras:NAME "
        "downloads those of ImageNet.",
    ),
    "freeze": Flag(
        TRAINING,
        "Regular expression for the names of layers that keep their weights "
        "and BatchNorm statistics, such as '^(?!predictions)'; none trains "
        "all. By default layers are frozen as a file has them.",
    ),
    "epochs": Flag(
        TRAINING,
        "Number of epochs.",
        integer,
        least=1,
        most=MOST_REPETITIONS,
    ),
    "batch_size": Flag(
        TRAINING, "Batch size over all devices.", integer, least=1
    ),
    "learning_rate": Flag(
        TRAINING,
        "Largest learning rate of the --schedule.",
        number,
        least=0,
    ),
    "schedule": Flag(
        TRAINING,
        "Learning rate over the epochs: piecewise divides it by 10 after 75 % "
        "and after 90 %, cosine falls along a cosine, one_cycle rises and "
        "falls; with options such as cosine:final=5e-6: {schedules}.",
    ),
    "warmup_epochs": Flag(
        TRAINING,
        "Epochs over which the learning rate rises at the start.",
        number,
        least=0,
    ),
    "momentum": Flag(TRAINING, "Momentum of SGD.", number, least=0, most=1),
    "nesterov": Flag(TRAINING, "Nesterov's momentum.", boolean),
    "weight_decay": Flag(
        TRAINING,
        "Weight decay; sgd and entropy_sgd add it to the gradient, Keras's "
        "optimizers decay the weights themselves.",
        number,
        least=0,
    ),
    "decay_exclude": Flag(
        TRAINING,
        "Weights that do not decay: none, one_dimensional (biases, and the "
        "scales and offsets of normalisation), or a regular expression for "
        "their paths. The default is none.",
    ),
    "clip_norm": Flag(
        TRAINING,
        "Largest norm of the gradient of all weights together. By default it "
        "is not clipped.",
        number,
        least=0,
    ),
    "label_smoothing": Flag(
        TRAINING,
        "Part of the probability that labels give to all classes alike, in "
        "the loss; objectives apply it where their papers do.",
        number,
        least=0,
        most=1,
    ),
    "precision": Flag(
        TRAINING,
        "Precision of the computations inside the network.",
        choices=one_of("float32", "mixed_bfloat16", "mixed_float16"),
    ),
    "select": Flag(
        TRAINING,
        "Network to keep: the last, or the best by clean or robust accuracy "
        "on training images that are held out.",
        choices=one_of("last", "clean", "robust"),
    ),
    "validate_every": Flag(
        TRAINING,
        "Epochs between two attacks on the held-out images. The default is 1 "
        "with --select=clean or robust, otherwise never.",
        integer,
        least=1,
    ),
    "validation_images": Flag(
        TRAINING,
        "Number of training images to hold out. The default is a tenth, at "
        "most 1000.",
        integer,
        least=1,
    ),
    "validation_steps": Flag(
        TRAINING,
        "Steps of the PGD that attacks the held-out images. The default is 10.",
        integer,
        least=1,
    ),
    "checkpoint_steps": Flag(
        TRAINING,
        "Steps between two checkpoints, in addition to the checkpoints after "
        "each epoch.",
        integer,
        least=1,
    ),
    "perturb_inputs": Flag(
        ATTACK,
        "Attack on the training images, which replaces the method's: a name, "
        "a name with options such as pgd:steps=7, or none. It must be able "
        "to run in a graph: pgd, pgd_cw, pgd_dlr, pgd_kl, fgsm, fgsm_rs, ...",
    ),
    "epsilon": Flag(
        ATTACK,
        "Largest perturbation of an image, in units of its pixels, which are "
        "in [0, 1]. The default is the method's: 8/255, and 0.031 for trades "
        "and mart; on the digits of --preset=digits it is 0.1.",
        number,
    ),
    "norm": Flag(ATTACK, "Norm in which epsilon is measured: linf, l2 or l1."),
    "steps": Flag(ATTACK, "Number of steps.", integer, most=MOST_REPETITIONS),
    "step_size": Flag(
        ATTACK,
        "Size of a step. The default for pgd is epsilon/4 in linf and "
        "epsilon/8 in l2 and l1; for fgsm_at it is 1.25 epsilon.",
        number,
    ),
    "attack_loss": Flag(
        ATTACK,
        "Loss that the attack maximizes: cross_entropy, margin, dlr, kl or "
        "squared_error.",
    ),
    "attack_mode": Flag(
        ATTACK,
        "Mode of the network during the attack.",
        choices=one_of("inference", "training"),
    ),
    "epsilon_warmup": Flag(
        ATTACK,
        "Number of epochs over which epsilon grows from 0.",
        integer,
        least=0,
    ),
    "collapse_drop": Flag(
        ATTACK,
        "fgsm_at, free_at: stops training where the accuracy under PGD drops "
        "by more than this within an epoch (catastrophic overfitting); 1 "
        "disables it.",
        number,
        least=0,
    ),
}
