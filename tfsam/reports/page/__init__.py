"""Many runs as one HTML page that needs no network.

`runs` reads what runs left, `table` puts it into columns and curves, `pictures`
draws images and loss surfaces, `sections` writes these as HTML, and `document`
puts the page together. report.js goes into it, draws the curves, and sorts.
"""

from tfsam.reports.page.document import render
from tfsam.reports.page.document import write

__all__ = ["render", "write"]
