"""What models answered to the same examples: confusion, calibration, and the examples that tell two sides apart.

Shapes: N examples, the same ones for every run; n runs of a side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.data.examples import SMALL_LABELS
from pipeline.metrics import metrics
from pipeline.reports import plots
from pipeline.reports.comparison_report import most_discordant_examples
from pipeline.reports.report import Section
from pipeline.reports.verdicts import Predictions, Side

MOST_DRAWN = 40  # classes of a confusion matrix, where there are more than SMALL_LABELS
MOST_SIDES = 6  # that are drawn each by itself


def confusion_figure(
    labels: NDArray[np.integer], predictions: NDArray[np.integer], classes: Sequence[str], title: str
) -> Figure:
    """Draw the confusion matrix; of more classes than anybody could read, those with the most mistakes."""
    drawn = np.arange(len(classes))
    if len(classes) > SMALL_LABELS:
        drawn = metrics.most_confused(labels, predictions, len(classes), MOST_DRAWN)
        title = f"{title}: the {len(drawn)} classes with the most mistakes"
    both_drawn = np.isin(labels, drawn) & np.isin(predictions, drawn)
    true, predicted = (np.searchsorted(drawn, values[both_drawn]) for values in (labels, predictions))
    confusion = metrics.confusion_matrix(true, predicted, len(drawn))
    return plots.plot_confusion_matrix(confusion, [classes[int(k)] for k in drawn], title)


def mistakes_and_calibration(
    answers: Mapping[str, Sequence[Predictions]], classes: Sequence[str], bins: int
) -> list[Section]:
    """Return a section of confusion matrices and one of calibration, of the runs of every side, by its name."""
    confusions, reliabilities = {}, {}
    note = f"The first {MOST_SIDES} of {len(answers)}." if len(answers) > MOST_SIDES else ""
    for name, runs in list(answers.items())[:MOST_SIDES]:
        labels, predictions, confidence = (np.concatenate(column) for column in list(zip(*runs, strict=True))[1:])
        caption = f"{name}, {len(runs)} runs together" if len(runs) > 1 else name
        counted = f"{np.sum(labels != predictions):,} of {len(labels):,} wrong"
        confusions[caption] = confusion_figure(labels, predictions, classes, counted)
        if np.isfinite(confidence).all():  # a table of predictions may lack the probabilities
            found = metrics.calibration_of(confidence, labels == predictions, bins)
            error = f"calibration error {100 * found.error:.2f} points"
            reliabilities[caption] = plots.plot_reliability(found, error)
    shown = Section("Which classes are mistaken for which", note, confusions)
    return [shown, Section("Calibration", note, reliabilities)] if reliabilities else [shown]


def telling_examples(
    sides: Sequence[Side],
    answers: Mapping[str, Sequence[Predictions]],
    images: Mapping[int, NDArray[np.uint8]],
    classes: Sequence[str],
) -> Section:
    """Return the examples on which the first two sides differ most, of those that are in `images` by their index."""
    examples, labels = answers[sides[0].name][0][:2]

    def captioned(i: int) -> tuple[NDArray[np.uint8], str]:
        lines = [f"#{examples[i]}: {classes[labels[i]]}"]
        for side in sides[:2]:
            counts = Counter(classes[run.predictions[i]] for run in answers[side.name]).most_common()
            said = (f"{count} × {answer}" if len(side.correct) > 1 else answer for answer, count in counts)
            lines.append(f"{side.name}: {', '.join(said)}")
        return images[examples[i]], "\n".join(lines)

    chosen = most_discordant_examples(*sides[:2])
    rows = {kind: [captioned(i) for i in places if examples[i] in images] for kind, places in chosen.items()}
    text = "Each with its number and its label, and below it what either side says."
    return Section(f"Examples that tell {sides[0].name} and {sides[1].name} apart", text, {}, rows)
