"""Models that users bring, as functions from pixels to logits."""

from tfsam.models.inspection import inspect
from tfsam.models.loading import load

__all__ = ["inspect", "load"]
