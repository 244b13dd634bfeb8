"""The flags of the command line: their declaration.

Nothing here imports TensorFlow, so that `--help` and a mistyped flag are
answered at once. `command_line.py` parses them, and `settings.py` turns those
that were given into the settings of a run.
"""

from tfsam import registries
from tfsam.runs.flag_types import Flag
from tfsam.runs.flag_types import boolean
from tfsam.runs.flag_types import boolean_or_words
from tfsam.runs.flag_types import integer
from tfsam.runs.flag_types import integers
from tfsam.runs.flag_types import number
from tfsam.runs.flag_types import numbers
from tfsam.runs.flag_types import one_of
from tfsam.runs.flag_types import size
from tfsam.runs.flag_types import words
from tfsam.runs.flag_types import words_or_none
from tfsam.support.registry import Registry

# With more epochs or steps than this, a run would never end; the steps of an
# ascent are traced one by one.
_MOST_REPETITIONS = 10**6
_MOST_ASCENT_STEPS = 100


TRAINING = "Training"
ATTACK = "Training's attack"
DATA = "Data"
EVALUATION = "Evaluation"
RUNNING = "Running"

GROUPS = (TRAINING, ATTACK, DATA, EVALUATION, RUNNING)

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
        most=_MOST_REPETITIONS,
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
    "steps": Flag(ATTACK, "Number of steps.", integer, most=_MOST_REPETITIONS),
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
    "dataset": Flag(
        DATA,
        "Images: SOURCE or SOURCE:PATH, as in digits, folder:PATH, csv:PATH "
        "and npz:PATH, or the name of an image data set of TensorFlow "
        "Datasets such as cifar10. Sources: {sources}.",
    ),
    "limit_train": Flag(
        DATA,
        "Number of training images to use, stratified by class.",
        integer,
        least=1,
    ),
    "limit_test": Flag(
        DATA,
        "Number of test images to use, stratified by class.",
        integer,
        least=1,
    ),
    "image_size": Flag(
        DATA,
        "Size that all images get: a side such as 32, or HEIGHTxWIDTH such as "
        "64x48. The default is the images' own size or, where they have "
        "several, the most common square of at most 64 pixels a side.",
        size,
    ),
    "resize": Flag(
        DATA,
        "How images get another size: crop cuts out the centre, pad adds black "
        "margins, stretch changes the proportions",
        choices=one_of("crop", "pad", "stretch"),
    ),
    "test_fraction": Flag(
        DATA,
        "Part of each class that is tested, where the images are not split "
        "into train and test; --seed chooses it. The default is 0.2; with "
        "--evaluate it is all of them.",
        number,
        least=0,
        most=1,
    ),
    "bad_images": Flag(
        DATA,
        "What to do about files that are no images: skip leaves them out with "
        "a warning, up to 5 % of all",
        choices=one_of("skip", "refuse"),
    ),
    "class_order": Flag(
        DATA,
        "Order of classes that are known by name: name (0, 1, 10, 2), number "
        "(0, 1, 2, 10), or a file of names, one a line, in the order of a "
        "network's outputs.",
    ),
    "augment": Flag(
        DATA,
        "Random crops and flips in training, as --augment alone; or "
        "augmentations in their order, separated by commas, with options such "
        "as shift_flip,mixup:alpha=0.8: {augmentations}.",
        boolean_or_words,
    ),
    "mix": Flag(
        DATA,
        "Images to mix into each training batch, such as synthetic ones: a "
        "source as for --dataset, whose training images have the same size "
        "and classes.",
    ),
    "mix_fraction": Flag(
        DATA,
        "Part of each batch that is drawn from --mix, with replacement. The "
        "default is 0.7.",
        number,
        least=0,
        most=1,
    ),
    "cache_dir": Flag(
        DATA,
        "Folder that keeps decoded images for later runs, or none. The "
        "default is ~/.cache/tfsam, or tfsam in XDG_CACHE_HOME.",
    ),
    "attacks": Flag(
        EVALUATION,
        "Attacks, separated by commas, with options such as "
        "pgd:steps=50:restarts=5: {attacks}; or none, with --corruptions.",
        words_or_none,
    ),
    "linf_epsilons": Flag(
        EVALUATION,
        "Values of epsilon in the linf norm, separated by commas, such as "
        "1/255,2/255; empty for none.",
        numbers,
    ),
    "l2_epsilons": Flag(
        EVALUATION,
        "Values of epsilon in the l2 norm; empty for none.",
        numbers,
    ),
    "l1_epsilons": Flag(
        EVALUATION,
        "Values of epsilon in the l1 norm; empty for none. What an attack "
        "breaks in one norm counts in the worst case of the others, where its "
        "image lies in the ball.",
        numbers,
    ),
    "target": Flag(
        EVALUATION,
        "Number of the class that attacks aim at, from 0, in place of any "
        "wrong class. The test images of this class are left out, and an image "
        "is broken only if it is classified as it.",
        integer,
        least=0,
    ),
    "attack_steps": Flag(
        EVALUATION,
        "Number of steps of the attacks that have steps. The default is each "
        "attack's own: 10 for pgd.",
        integer,
        least=0,
        most=_MOST_REPETITIONS,
    ),
    "attack_batch_size": Flag(
        EVALUATION,
        "Number of images attacked at once: a chunk.",
        integer,
        least=1,
    ),
    "corruptions": Flag(
        EVALUATION,
        "Corruptions under which accuracy is measured, too, separated by "
        "commas: all, groups (noise, blur, weather, digital, extra) or names: "
        "{corruptions}. They are not those of CIFAR-10-C.",
        words_or_none,
    ),
    "severities": Flag(
        EVALUATION,
        "Severities of --corruptions, separated by commas. The default is "
        "1,2,3,4,5.",
        integers,
    ),
    "evaluate": Flag(
        EVALUATION,
        "Model to attack, a file of Keras (.keras, or HDF5 under any name) or "
        "a SavedModel folder; nothing is trained. The softmax or sigmoid at "
        "its end is removed. A file of weights alone needs the --network that "
        "they belong to. A SavedModel is a program: load only those you trust.",
    ),
    "surrogate": Flag(
        EVALUATION,
        "Model to compute the attacks on, for transfer attacks; see "
        "--evaluate. Its pixels are found out separately.",
    ),
    "diagnose": Flag(
        EVALUATION,
        "Look for signs that an attack failed for reasons of its own.",
        boolean,
    ),
    "transfer_attacks": Flag(
        EVALUATION,
        "Attacks to compute on the --surrogate, in addition to --attacks on "
        "the model itself. Without this flag all --attacks go to the "
        "surrogate.",
        words,
    ),
    "sweep": Flag(
        EVALUATION,
        "How several values of epsilon are attacked. With bisect an image "
        "that stands at an epsilon is taken to stand at all smaller ones, "
        "which costs less and may miss some; autoattack needs full",
        choices=one_of("full", "bisect"),
    ),
    "inspect": Flag(
        EVALUATION,
        "Model to look at, as for --evaluate: prints its format, input, "
        "outputs and ending, with --dataset also its natural accuracy under "
        "each range of pixels, and the command that evaluates it.",
    ),
    "pixels": Flag(
        EVALUATION,
        "Pixels that the model was trained on: 0..1, 0..255, -1..1, caffe, "
        "MEAN/STD by channel such as 0.49,0.48,0.45/0.2,0.2,0.2, or "
        "MODULE:FUNCTION, a differentiable function of pixels in [0, 1]; auto "
        "takes what its layers or its natural accuracy tell. Epsilon is in "
        "units of [0, 1] in any case.",
    ),
    "output": Flag(
        EVALUATION,
        "Output of the model that holds the classes, by its name or number.",
    ),
    "import": Flag(
        EVALUATION,
        "Modules of yours to import first, separated by commas, such as those "
        "that register the model's layers with Keras.",
        words,
    ),
    "trust": Flag(
        EVALUATION,
        "Names of the model's Lambda layers whose stored code may run, "
        "separated by commas.",
        words,
    ),
    "draws": Flag(
        EVALUATION,
        "Draws of a random model, such as one with noise, by which each "
        "verdict is made. The default is 20 for a model that is random, and a "
        "single call of another; attack a random one by autoattack_rand or "
        "pgd:eot=20.",
        integer,
        least=1,
        most=_MOST_REPETITIONS,
    ),
    "warm_start": Flag(
        EVALUATION,
        "Start at each epsilon from the image found at the smaller one, for "
        "attacks that support it, such as pgd.",
        boolean,
    ),
    "save_adversarial": Flag(
        EVALUATION,
        "Keep the adversarial images in WORKDIR/evaluation.",
        boolean,
    ),
    "shard": Flag(
        EVALUATION,
        "With --evaluate: i/n takes every n-th chunk of images, beginning "
        "with chunk i, so that n processes share the work; see --merge.",
    ),
    "merge": Flag(
        EVALUATION,
        "Folders of finished shards, separated by commas, to combine in the "
        "folder --workdir; takes no other flag.",
        words,
    ),
    "robustbench": Flag(
        RUNNING,
        "JSON file to write at the end: the entry of RobustBench's "
        "leaderboards (model_info/DATASET/THREAT/NAME.json), which needs "
        "--attacks=autoattack. Fields that you have filled in are kept.",
    ),
    "preset": Flag(
        RUNNING,
        "Defaults of all other flags. digits: 8x8 images that come with "
        "scikit-learn, a small network, one minute; its values of epsilon "
        "apply to this data set only. cifar10, cifar100: the paper's recipe.",
    ),
    "workdir": Flag(
        RUNNING,
        "Folder of the run. The default is runs/NAME, where NAME describes "
        "the run.",
    ),
    "overwrite": Flag(
        RUNNING,
        "Start again in a folder that holds another run, whose files are "
        "removed first.",
        boolean,
    ),
    "seed": Flag(RUNNING, "Seed of all random numbers.", integer, least=0),
    "devices": Flag(
        RUNNING,
        "auto (all GPUs, otherwise the CPU), cpu, cpu:2 (two logical "
        "devices), gpu:all or gpu:2.",
    ),
    "strategy": Flag(
        RUNNING,
        "Devices that share each batch: mirrored, the --devices of this "
        "process; multi_worker, the devices of all processes in TF_CONFIG, "
        "each started by this command with the same --workdir; auto, "
        "multi_worker if TF_CONFIG is set.",
    ),
    "jit_compile": Flag(
        RUNNING,
        "Whether to compile gradients with XLA; auto does so on GPUs.",
        choices=one_of("auto", "true", "false"),
    ),
    "help": Flag(
        RUNNING,
        "Print this help; --help=NAME prints the options of a method, an "
        "attack or another part.",
    ),
    "methods": Flag(
        RUNNING, "Print the table of all methods with their flags.", boolean
    ),
    "version": Flag(RUNNING, "Print the version.", boolean),
}

# Flags that answer a question; nothing is run.
QUESTIONS = ("help", "methods", "version")


# Registries by the flag that takes a name from them.
REGISTRIES: dict[str, Registry] = {
    "attacks": registries.ATTACKS,
    "transfer_attacks": registries.ATTACKS,
    "perturb_inputs": registries.ATTACKS,
    "perturb_weights": registries.WEIGHTS,
    "objective": registries.OBJECTIVES,
    "optimizer": registries.OPTIMIZERS,
    "average": registries.AVERAGES,
    "schedule": registries.SCHEDULES,
    "augment": registries.AUGMENTATIONS,
    "network": registries.NETWORKS,
}
