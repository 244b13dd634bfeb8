"""Data sets: images and labels from every source, and batches of them."""

from tfsam.data.sources import SOURCES
from tfsam.data.sources import Images
from tfsam.data.sources import as_float
from tfsam.data.sources import hold_out
from tfsam.data.sources import listing
from tfsam.data.sources import load
from tfsam.data.sources import sample
from tfsam.data.sources import statistics

__all__ = [
    "SOURCES",
    "Images",
    "as_float",
    "hold_out",
    "listing",
    "load",
    "sample",
    "statistics",
]
