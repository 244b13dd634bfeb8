"""HTML and JSON with everything escaped: ElementTree does it for elements."""

import json
import math
from xml.etree import ElementTree


def node(tag, *children, **attributes):
    """An element of HTML or SVG.

    Args:
        tag: its name.
        *children: strings, elements, lists of them; None is left out.
        **attributes: their values, None for no attribute; an underscore in a
            name is a hyphen, one at the end is none.
    """
    element = ElementTree.Element(
        tag,
        {
            name.rstrip("_").replace("_", "-"): str(value)
            for name, value in attributes.items()
            if value is not None
        },
    )
    for child in children:
        _append(element, child)
    return element


def _append(element, child):
    if isinstance(child, list):
        for one in child:
            _append(element, one)
    elif isinstance(child, str):
        if len(element):
            element[-1].tail = (element[-1].tail or "") + child
        else:
            element.text = (element.text or "") + child
    elif child is not None:
        element.append(child)


def to_html(element):
    """An element as text.

    Args:
        element: of `node`.
    """
    return ElementTree.tostring(element, encoding="unicode", method="html")


def to_json(content):
    """JSON that may stand in a script element, and that browsers can read.

    Args:
        content: what `json.dumps` takes; NaN and infinity become null.
    """
    text = json.dumps(_finite(content), allow_nan=False)
    return text.replace("<", r"\u003c")


def _finite(content):
    """The content, with None for NaN and infinity, which JSON has not."""
    if isinstance(content, dict):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
