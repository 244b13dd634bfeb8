"""Identity: descriptions by which an evaluation recognises objects."""

from tfsam.support.identity.description import Unknown
from tfsam.support.identity.description import compact
from tfsam.support.identity.description import digest
from tfsam.support.identity.keras_objects import has_foreign_code
from tfsam.support.identity.libraries import version_of
from tfsam.support.identity.objects import describe

__all__ = [
    "Unknown",
    "compact",
    "describe",
    "digest",
    "has_foreign_code",
    "version_of",
]
