"""HTML and JSON, escaped."""

import json
import math
from typing import Any
from xml.etree import ElementTree


def node(tag: str, *children: Any, **attributes: Any) -> ElementTree.Element:
    """Makes an element of HTML or SVG.

    Args:
        tag: its name.
        *children: strings, elements, lists of them; None is left out.
        **attributes: their values, None for no attribute. An underscore in a
            name becomes a hyphen, and is dropped at its end.
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


def _append(element: ElementTree.Element, child: Any) -> None:
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


def to_html(element: ElementTree.Element) -> str:
    """Converts an element to text.

    Args:
        element: an element that `node` made.
    """
    return ElementTree.tostring(element, encoding="unicode", method="html")


def to_json(content: Any) -> str:
    """Converts content to JSON that is safe inside a script element.

    Args:
        content: any argument of `json.dumps`; NaN and infinity become null.
    """
    text = json.dumps(_finite(content), allow_nan=False)
    return text.replace("<", r"\u003c")


def _finite(content: Any) -> Any:
    """Replaces NaN and infinity, which JSON lacks, by None."""
    if isinstance(content, dict):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
