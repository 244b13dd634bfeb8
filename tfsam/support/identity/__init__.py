"""Identity: descriptions by which attacks, models and code are recognised.

`describe` and the rules of descriptions are in `objects.py`, the part about
Keras in `keras_objects.py`.
"""

from tfsam.support.identity.digests import Unknown
from tfsam.support.identity.digests import compact
from tfsam.support.identity.digests import digest
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
