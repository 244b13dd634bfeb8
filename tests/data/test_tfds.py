"""TensorFlow Datasets: archives, checksums and hosts that do not answer."""

import dataclasses
import hashlib
import io
import pathlib
import socket
import tarfile
import time

import numpy as np
import pytest
import tensorflow_datasets
from helpers import assert_one_line_error

from tfsam.data import sources
from tfsam.data import tfds

RNG = np.random.default_rng(0)
ARCHIVE = "cifar-100-binary.tar.gz"


def cifar100_archive(images, labels):
    """An archive in the official binary format: coarse, fine, pixels."""

    def records(chosen):
        return b"".join(
            bytes([labels[i] // 5, labels[i]])
            + images[i].transpose(2, 0, 1).tobytes()
            for i in chosen
        )

    half = len(images) // 2
    members = {
        "train.bin": records(range(half)),
        "test.bin": records(range(half, len(images))),
        "coarse_label_names.txt": "\n".join(f"coarse{i}" for i in range(20)),
        "fine_label_names.txt": "\n".join(f"fine{i}" for i in range(100)),
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            content = (
                content if isinstance(content, bytes) else content.encode()
            )
            info = tarfile.TarInfo(f"cifar-100-binary/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def put_archive(data_dir, content):
    path = pathlib.Path(data_dir) / "downloads/manual" / ARCHIVE
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def no_network(monkeypatch):
    """Sends every request to a closed port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_tfds_cifar100_from_a_manual_archive(tmp_path, monkeypatch, no_network):
    import tensorflow_datasets as tfds

    images = RNG.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    labels = np.array([7, 99, 7, 99, 7, 99, 99, 7, 99, 7, 99, 7])
    content = cifar100_archive(images, labels)
    put_archive(tmp_path, content)
    # TFDS has the checksum of the official archive: replace it by this one's.
    known = tfds.builder_cls("cifar100").url_infos
    (url,) = known
    checksum = hashlib.sha256(content).hexdigest()
    info = dataclasses.replace(known[url], size=len(content), checksum=checksum)
    monkeypatch.setitem(known, url, info)
    loaded = sources.load("cifar100", data_dir=tmp_path)
    assert loaded.x_train.shape == loaded.x_test.shape == (6, 32, 32, 3)
    assert loaded.x_train.dtype == np.uint8 and loaded.y_test.dtype == np.int64
    assert loaded.class_names == tuple(f"fine{i}" for i in range(100))
    expected = {
        image.tobytes(): label
        for image, label in zip(images, labels, strict=True)
    }
    for x, y, half in (
        (loaded.x_train, loaded.y_train, images[:6]),
        (loaded.x_test, loaded.y_test, images[6:]),
    ):
        assert {image.tobytes() for image in x} == {i.tobytes() for i in half}
        assert [expected[image.tobytes()] for image in x] == y.tolist()
    # Prepared data needs no archive, and is always in the same order.
    (tmp_path / "downloads/manual" / ARCHIVE).unlink()
    again = sources.load("cifar100", data_dir=tmp_path, limit_train=2)
    assert sorted(again.y_train) == [7, 99]
    np.testing.assert_array_equal(again.x_test, loaded.x_test)
    # A damaged record is found by its checksum.
    (record,) = tmp_path.glob("cifar100/*/*-train.tfrecord-*")
    content = bytearray(record.read_bytes())
    content[len(content) // 2] ^= 1
    record.write_bytes(content)
    with pytest.raises(ValueError) as error:
        sources.load("cifar100", data_dir=tmp_path)
    assert_one_line_error(error, "cannot read", "Received: cifar100")


def test_a_test_split_alone_is_enough_to_test(tmp_path):
    """As `cifar10_corrupted` has it, with a configuration."""

    class TestAlone(tensorflow_datasets.core.GeneratorBasedBuilder):
        VERSION = tensorflow_datasets.core.Version("1.0.0")
        BUILDER_CONFIGS = (
            tensorflow_datasets.core.BuilderConfig(name="fog_1"),
        )

        def _info(self):
            features = tensorflow_datasets.features
            return tensorflow_datasets.core.DatasetInfo(
                builder=self,
                features=features.FeaturesDict(
                    {
                        "image": features.Image(shape=(8, 8, 3)),
                        "label": features.ClassLabel(num_classes=2),
                    }
                ),
            )

        def _split_generators(self, manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            for number, image in enumerate(pixels):
                yield number, {"image": image, "label": number % 2}

    pixels = RNG.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    source = "test_alone/fog_1"
    images = sources.load(source, data_dir=tmp_path, part="test")
    order = [images.x_test.tolist().index(image.tolist()) for image in pixels]
    assert images.y_test[order].tolist() == [0, 1, 0, 1]
    assert len(images.x_train) == 0
    with pytest.raises(ValueError) as error:
        sources.load(source, data_dir=tmp_path)
    assert_one_line_error(error, "splits train and test", f"{source} with test")


def test_tfds_archive_with_a_wrong_checksum(tmp_path, no_network):
    put_archive(tmp_path, b"not the official archive")
    with pytest.raises(ValueError) as error:
        sources.load("cifar100", data_dir=tmp_path)
    assert_one_line_error(error, "checksum", "Received: cifar100")


def test_tfds_offline(tmp_path, no_network):
    start = time.monotonic()
    with pytest.raises(ValueError) as error:
        sources.load("cifar10", data_dir=tmp_path)
    assert time.monotonic() - start < 20
    assert_one_line_error(
        error,
        "cifar-10-binary.tar.gz",
        str(tmp_path / "downloads/manual"),
        "folder:PATH",
        "npz:PATH",
    )


def test_probe_of_a_host_that_never_answers(monkeypatch):
    monkeypatch.setattr(tfds, "_PROBE_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        start = time.monotonic()
        port = server.getsockname()[1]
        assert not tfds._is_reachable(f"http://127.0.0.1:{port}/archive")
        assert time.monotonic() - start < 5
