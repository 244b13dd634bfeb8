"""Image data sets of TensorFlow Datasets, downloaded where that is possible."""

import contextlib
import io
import os
import threading
from typing import Any

import numpy as np

from tfsam.data import rows
from tfsam.data import stacks
from tfsam.data.files.decoding import refusal
from tfsam.data.images import Images
from tfsam.data.options import Options
from tfsam.data.options import Pick
from tfsam.data.options import untested

_PROBE_SECONDS = 6.0


def names(source: str) -> list[str]:
    """Lists the names of all data sets.

    Args:
      source: the name that the user gave, for the error message.

    Raises:
      ImportError: if TensorFlow Datasets cannot be imported.
    """
    try:
        import tensorflow_datasets as tfds
    except Exception as error:
        # Its own requirements clash with those of some TensorFlow versions.
        raise ImportError(
            f"tensorflow-datasets cannot be imported ({error}). "
            f"Received: {source}"
        ) from error
    return tfds.list_builders(with_community_datasets=False)


def load(
    source: str,
    pick: Pick,
    options: Options,
    data_dir: str | os.PathLike[str] | None,
) -> Images:
    """Loads the splits train and test of a data set.

    Where there is no test, validation is the test part; where there is neither,
    a part of train.

    Args:
        source: its name, with a configuration and a version as TFDS writes
            them, such as "cifar10:3.0.2".
        pick: see `Pick`.
        options: see `Options`.
        data_dir: where TensorFlow Datasets keeps its files, None for its
            default.

    Raises:
        ValueError: if the data set cannot be built, reached, prepared or read,
            or does not consist of images and labels.
    """
    builder = _builder(source, data_dir)
    _prepare(builder, source)
    encoded, labels, notes = _chosen(builder, source, pick, options)
    contents = [*encoded["train"], *encoded["test"]]
    names = [f"image {number} of {source}" for number in range(len(contents))]
    size, resized = stacks.size_of(contents, io.BytesIO, source, options)
    stack, reasons = stacks.decode(
        stacks.Encoded(contents, names, size, options.resize)
    )
    for name, reason in reasons.items():
        raise refusal(
            "images must be such as can be decoded", f"{name}: {reason}"
        )
    pixels, boundary = stacks.pixels_of(stack), len(encoded["train"])
    return Images(
        source,
        rows.part(pixels, slice(boundary)),
        labels["train"],
        rows.part(pixels, slice(boundary, None)),
        labels["test"],
        tuple(builder.info.features["label"].names),
        (*notes, *resized),
    )


def _builder(source: str, data_dir: str | os.PathLike[str] | None) -> Any:
    """Returns the builder of a data set, which holds images and labels."""
    import tensorflow_datasets as tfds

    # Builders run the code of hundreds of data sets and raise anything.
    try:
        builder = tfds.builder(source, data_dir=data_dir, try_gcs=False)
        features = builder.info.features
    except Exception as error:
        raise refusal(f"TFDS cannot build {source}: {error}", source) from error
    if not (
        "image" in features
        and "label" in features
        and isinstance(features["image"], tfds.features.Image)
        and isinstance(features["label"], tfds.features.ClassLabel)
        and features["image"].np_dtype == np.uint8
    ):
        raise refusal(
            "a TFDS source must have the features image (uint8) and label",
            f"{source} with {', '.join(features)}",
        )
    return builder


def _chosen(
    builder: Any, source: str, pick: Pick, options: Options
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[str]]:
    """Returns the encoded images and the labels of both parts, and notes."""
    splits = list(builder.info.splits)
    test = next((s for s in ("test", "validation") if s in splits), None)
    if "train" not in splits and (test is None or options.part != "test"):
        raise refusal(
            "a TFDS source must have the splits train and test; test alone is "
            "enough where nothing is trained",
            f"{source} with {', '.join(splits)}",
        )
    notes = []
    encoded, labels = {}, {}
    if test is None:
        images, every = _read(builder, source, "train")
        is_test = options.split(every, np.arange(len(every)))
        if "test" in options.splits and not is_test.any():
            raise untested(source)
        notes.append(options.note(source, is_test, every))
        for part, side in (("train", ~is_test), ("test", is_test)):
            encoded[part], labels[part] = images[side], every[side]
    else:
        if test != "test":
            notes.append(f"the split {test} of {source} is the test part")
        names = {"train": "train", "test": test}
        for part in options.splits:
            encoded[part], labels[part] = _read(builder, source, names[part])
    for part in {"train", "test"} - {*options.splits}:
        (known,) = options.splits
        encoded[part] = encoded[known][:0]
        labels[part] = labels[known][:0]
    for part in encoded:
        # Only the chosen images are decoded, later.
        chosen = pick(labels[part], part)
        encoded[part] = encoded[part][chosen]
        labels[part] = labels[part][chosen]
    return encoded, labels, notes


def _read(
    builder: Any, source: str, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images of a split, encoded, and their labels."""
    import tensorflow_datasets as tfds

    try:
        data = builder.as_dataset(
            split=split,
            shuffle_files=False,
            batch_size=-1,
            decoders=tfds.decode.PartialDecoding(
                {"image": True, "label": True},
                decoders={"image": tfds.decode.SkipDecoding()},
            ),
        )
    except Exception as error:
        # Damaged files raise errors of many types.
        raise refusal(f"TFDS cannot read {source}: {error}", source) from error
    return data["image"].numpy(), data["label"].numpy()


def _prepare(builder: Any, source: str) -> None:
    """Downloads and prepares a TFDS data set, unless that was done before."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import resource

    if builder.is_prepared():
        return
    downloads = builder.data_dir_root / "downloads"
    manual = downloads / "manual"

    def is_local(url: str, info: Any) -> bool:
        cached = resource.get_dl_fname(url, info.checksum)
        return (
            bool(info.filename and (manual / info.filename).exists())
            or resource.is_locally_cached(downloads / builder.name / cached)
            or resource.is_locally_cached(downloads / cached)
        )

    archives = builder.url_infos or {}
    missing = [url for url in archives if not is_local(url, archives[url])]
    # TFDS retries for minutes: find out first whether that can succeed.
    if missing and not _is_reachable(missing[0]):
        files = ", ".join(archives[url].filename or url for url in missing)
        raise refusal(
            f"{source} is not prepared in {builder.data_dir_root}, and"
            f" {missing[0]} cannot be reached: put {files} into {manual}, or"
            " use folder:PATH or npz:PATH",
            source,
        )
    try:
        builder.download_and_prepare(
            download_dir=downloads,
            download_config=tfds.download.DownloadConfig(
                manual_dir=manual, try_download_gcs=False
            ),
        )
    except Exception as error:
        raise refusal(
            f"TFDS cannot prepare {source}: {error}", source
        ) from error


def _is_reachable(url: str) -> bool:
    """Returns whether the server of a URL answers within a few seconds."""
    import requests

    if not url.startswith("http"):
        return True
    answered = threading.Event()

    def probe() -> None:
        with contextlib.suppress(requests.RequestException):
            with requests.get(
                url, stream=True, timeout=_PROBE_SECONDS / 2
            ) as response:
                # TFDS retries on server errors, not on the rest.
                if response.status_code < 500:
                    answered.set()

    # A name server that does not answer is bounded by no timeout of requests.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return answered.is_set()
