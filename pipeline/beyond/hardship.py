"""How a network fares on digits that are not as it was trained on: counts, for a table and a picture.

Shapes: N digits, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from pipeline.beyond import outside, sheet
from pipeline.beyond.corruptions import CORRUPTIONS, corrupted

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float64]]  # uint8 [N, 28, 28] to probabilities [N, K]


def under_corruption(
    predict: Predict, images: NDArray[np.uint8], labels: NDArray[np.uint8], seed: int
) -> dict[str, dict[str, int]]:
    """Digits predicted right of all, by corruption."""
    return {name: _count(predict(corrupted(images, name, seed)), labels) for name in CORRUPTIONS}


def in_other_guise(
    predict: Predict, images: NDArray[np.uint8], labels: NDArray[np.uint8], prepared: bool
) -> dict[str, dict[str, int]]:
    """Digits that a person reads as well: inverted, and in matplotlib's colours made grey again; each as it comes, and
    where `prepared` is asked for after the preparation that `predict` gives to any image."""
    guises = {"inverted": 255 - images, "in odd colours": odd_colours(images)}
    found = {}
    for name, given in guises.items():
        found[name] = _count(predict(given), labels)
        if prepared:
            in_form = np.stack([sheet.to_field(sheet.find_ink(image)) for image in given])
            found[f"{name}, prepared"] = _count(predict(in_form), labels)
    return found


def odd_colours(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Digits as matplotlib draws them where nobody names a colour map (viridis), read back as grey (ITU-R 601)."""
    greys = np.rint(colormaps["viridis"](np.arange(256))[:, :3] @ (0.299, 0.587, 0.114) * 255).astype(np.uint8)
    return greys[images]


def elsewhere(predict: Predict, sure_above: float) -> dict[str, dict[str, Any]]:
    """Digits of other sources, with the preparation and without: right of all, and right of those it is sure of."""
    sources = {
        "scikit-learn": outside.scikit_learn(),
        "printed fonts": outside.printed(),
        **{f"drawn, {pen} pen": outside.drawn(pen) for pen in outside.PENS},
    }
    found: dict[str, dict[str, Any]] = {}
    for name, (pages, labels) in sources.items():
        prepared = predict(np.stack([sheet.read_sheet(page).digits[0] for page in pages]))
        sure = prepared.max(1) >= sure_above
        right = prepared.argmax(1) == labels
        found[name] = _count(prepared, labels) | {
            "sure": int(sure.sum()),
            "sure_right": int((sure & right).sum()),
            "unprepared_right": _count(predict(unprepared(pages)), labels)["right"],
        }
    return found


def unprepared(pages: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pages only brought to 28 x 28, and to white on black where the border is light."""
    size = (sheet.FIELD, sheet.FIELD)
    small = [np.asarray(Image.fromarray(page).resize(size, Image.Resampling.BILINEAR)) for page in pages]
    return np.stack([255 - page if np.median(page[[0, -1]]) > 127 else page for page in small])


def suspects(
    labels: NDArray[np.uint8], probabilities: NDArray[np.float64], most: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Places of the digits whose label the network finds least probable, and that probability."""
    given = probabilities[np.arange(len(labels)), labels]
    order = np.argsort(given, kind="stable")[:most]
    return order, given[order]


def _count(probabilities: NDArray[np.float64], labels: NDArray[Any]) -> dict[str, int]:
    return {"right": int((probabilities.argmax(1) == labels).sum()), "digits": len(labels)}
