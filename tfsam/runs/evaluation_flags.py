"""The flags of evaluations."""

from tfsam.runs.flag_types import MOST_REPETITIONS
from tfsam.runs.flag_types import Flag
from tfsam.runs.flag_types import boolean
from tfsam.runs.flag_types import integer
from tfsam.runs.flag_types import integers
from tfsam.runs.flag_types import numbers
from tfsam.runs.flag_types import one_of
from tfsam.runs.flag_types import words
from tfsam.runs.flag_types import words_or_none

EVALUATION = "Evaluation"

FLAGS: dict[str, Flag] = {
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
        "Values of epsilon in the l1 norm; empty for none. An adversarial "
        "image found in one norm counts in the worst case of the others as "
        "well, if it lies in their balls.",
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
        most=MOST_REPETITIONS,
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
        "--evaluate. Its range of pixels is determined separately.",
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
        "Way to attack at several values of epsilon. With bisect an image that "
        "survives at an epsilon is taken to survive at all smaller ones, which "
        "costs less and may miss some broken images; autoattack needs full",
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
        "determines them by its layers or its natural accuracy. Epsilon is in "
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
        "Number of draws of a random model, such as one with noise, by which "
        "each verdict is made. The default is 20; other models are called "
        "once. Attack a random model by autoattack_rand or pgd:eot=20.",
        integer,
        least=1,
        most=MOST_REPETITIONS,
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
}
