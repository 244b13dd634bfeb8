"""Tables of images: csv files in the forms of competitions."""

import pathlib

import numpy as np
import pytest
from helpers import assert_one_line_error
from PIL import Image

from tfsam.data import sources
from tfsam.data.files import tables

NAMES = ("a", "b", "c", "d")


@pytest.fixture
def folder(tmp_path):
    """Four images beside the table and four, of the same names, below."""
    for place in ("", "images/", "train/sorted/"):
        for number, name in enumerate(NAMES):
            path = tmp_path / f"{place}{place[:2]}{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((8, 8, 3), number, np.uint8)
            Image.fromarray(pixels).save(path)
    return tmp_path


def table(folder, text, name="table.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def found(listing):
    """(name of the file, name of the class, split) of each row."""
    return [
        (
            pathlib.Path(entry.path).relative_to(listing.base).as_posix(),
            listing.class_names[entry.label],
            entry.split,
        )
        for entry in listing.entries
    ]


EXPECTED = [(f"{n}.png", c, "") for n, c in zip(NAMES, "xyxy", strict=True)]


@pytest.mark.parametrize(
    "text",
    [
        "a.png,x\nb.png,y\nc.png,x\nd.png,y\n",
        "file,label\na.png,x\nb.png,y\nc.png,x\nd.png,y\n",
        "file;label\na.png;x\nb.png;y\nc.png;x\nd.png;y\n",
        "\ufefffile\tlabel\r\na.png\tx\r\n\r\nb.png\ty\r\nc.png\tx\r\nd.png\ty",
        "label,id\nx,a\ny,b\nx,c\ny,d\n",
        "n,Class,size,path\n1,x,9,./a.png\n2,y,9,b.png\n3,x,9,c.png\n4,y,8,d.png",
        '"name","label"\n"a.png","x"\n"b.png","y"\n"c.png","x"\n"d.png","y"\n',
        "image,x,y\na,1,0\nb,0,1\nc,1.0,0.0\nd,0,1\n",
        "f,label\n/home/me/pictures/a.png,x\n../b.png,y\nC:\\p\\c.png,x\nd.png,y\n",
    ],
)
def test_tables_of_every_kind(folder, text):
    assert found(tables.read(table(folder, text))) == EXPECTED


@pytest.mark.parametrize("suffix", ["", ".png"])
@pytest.mark.parametrize("place", ["images/", "train/sorted/"])
def test_images_in_a_folder_beside_the_table(folder, place, suffix):
    names = [f"{place[:2]}{name}" for name in NAMES]
    rows = [f"{name}{suffix},{n % 2}" for n, name in enumerate(names)]
    listing = tables.read(table(folder, "\n".join(rows)))
    assert [name for name, _, _ in found(listing)] == [
        f"{place}{name}.png" for name in names
    ]


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ("train train test test", "train train test test"),
        ("Training Training PublicTest Test", "train train test test"),
        ("train train val valid", "train train test test"),
        ("train train val test", "train train - test"),
    ],
)
def test_splits(folder, splits, expected):
    rows = [
        f"{name}.png,{label},{split}"
        for name, label, split in zip(
            NAMES, "xyxy", splits.split(), strict=True
        )
    ]
    for header in ("file,label,split\n", "")[: 1 if "P" in splits else 2]:
        listing = tables.read(table(folder, header + "\n".join(rows)))
        wanted = [split for split in expected.split() if split != "-"]
        assert [split for _, _, split in found(listing)] == wanted
        assert bool(listing.notes) == ("val" in splits)


def test_a_table_is_read_like_a_folder(folder, tmp_path):
    rows = [
        f"{name},{label}" for name, label in zip(NAMES, "xyxy", strict=True)
    ]
    path = table(folder, "\n".join(rows))
    images = sources.load(f"csv:{path}", cache_dir=tmp_path / "cache")
    assert images.name == f"csv:{path}" and images.class_names == ("x", "y")
    assert images.x_train.shape == images.x_test.shape == (2, 8, 8, 3)
    pixels = [*images.x_train[:, 0, 0, 0], *images.x_test[:, 0, 0, 0]]
    assert sorted(pixels) == [0, 1, 2, 3]
    labels = [*images.y_train, *images.y_test]
    assert [
        label == pixel % 2 for label, pixel in zip(labels, pixels, strict=True)
    ]
    everything = sources.load(f"csv:{path}", part="test")
    assert everything.x_test[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert everything.y_test.tolist() == [0, 1, 0, 1]
    assert len(everything.x_train) == 0
    before = sources.listing(f"csv:{path}")
    (folder / "a.png").write_bytes((folder / "b.png").read_bytes() + b"more")
    assert sources.listing(f"csv:{path}") != before


def test_a_missing_file_is_a_bad_image(folder):
    rows = [
        f"{name},{label}" for name, label in zip(NAMES, "xyxy", strict=True)
    ]
    path = table(folder, "\n".join([*rows, "e.png,x"]))
    with pytest.raises(ValueError) as error:
        sources.load(f"csv:{path}")
    assert_one_line_error(error, "1 of 5", "e.png (No such file")
    path = table(folder, "\n".join([*rows * 5, "e.png,x"]))
    with pytest.warns(UserWarning, match="skipped 1 of 21 files.*e.png"):
        sources.load(f"csv:{path}")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["two columns"]),
        ("a.png\nb.png\n", ["two columns"]),
        ("a.png,x\nb.png,y,z\nc.png,x\n", ["2 columns", "3 in row 2"]),
        ("e.png,x\nf.png,y\n", ["must name files", "f.png, y"]),
        ("f,p,q\na.png,x,1\nb.png,y,2\n", ["called label", "p, q"]),
        ("a.png,x\nb.png,\n", ["name a class", "b.png"]),
        ("a.png,x\nb.png,x\n", ["two classes", "x"]),
        ("f,label,split\na,x,train\nb,y,what\n", ["train, test", "what"]),
        ("f,label,split\na,x,test\nb,y,test\n", ["train and test", "test"]),
    ],
)
def test_tables_that_are_none(folder, text, parts):
    with pytest.raises(ValueError) as error:
        sources.load(f"csv:{table(folder, text)}")
    assert_one_line_error(error, *parts)


def test_files_that_are_no_tables(tmp_path):
    for source in ("csv:", f"csv:{tmp_path / 'none.csv'}"):
        with pytest.raises(ValueError) as error:
            sources.load(source)
        assert_one_line_error(error, "csv:PATH")
    path = tmp_path / "a.csv"
    for content in (b"\xff\xfe\0a\0", b"a,b\0\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError) as error:
            sources.load(f"csv:{path}")
        assert_one_line_error(error)
