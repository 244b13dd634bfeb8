"""Data sets: images and labels from every source, and batches of them."""

from tfsam.data.images import Images
from tfsam.data.images import as_float
from tfsam.data.images import hold_out
from tfsam.data.images import sample
from tfsam.data.images import statistics
from tfsam.data.rows import Rows
from tfsam.data.sources import SOURCES
from tfsam.data.sources import listing
from tfsam.data.sources import load

__all__ = [
    "SOURCES",
    "Images",
    "Rows",
    "as_float",
    "hold_out",
    "listing",
    "load",
    "sample",
    "statistics",
]
