"""The flags of the data."""

from tfsam.runs.flag_types import Flag
from tfsam.runs.flag_types import boolean_or_words
from tfsam.runs.flag_types import integer
from tfsam.runs.flag_types import number
from tfsam.runs.flag_types import one_of
from tfsam.runs.flag_types import size

DATA = "Data"

FLAGS: dict[str, Flag] = {
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
        "Way to give images another size: crop cuts out the centre, pad adds "
        "black margins, stretch changes the proportions",
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
        "Treatment of files that are not images: skip leaves them out with a "
        "warning, up to 5 % of all",
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
}
