"""Train the network by which `predict` and `serve` tell digits from letters and other signs. It is no stage of DVC.

It learns from training digits, and from digits and signs in the fonts that Matplotlib brings.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.apps.digit_finder import DIGITS, find_digits, finds_classes_of
from pipeline.apps.predictor import digit_likeness
from pipeline.base.command import main
from pipeline.base.console import TrainingProgress
from pipeline.base.errors import UserError
from pipeline.base.files import save_json
from pipeline.base.keras_import import load_keras
from pipeline.base.project import Project
from pipeline.base.schema import Config
from pipeline.data.examples import Examples, head
from pipeline.data.split import training_examples

# Left out are those that look like digits in some font, O o I l | S s Z z B, and %, which has rings as o.
SIGNS = sorted({*string.ascii_letters, *"!?#&+*=@$€./-()[]{}<>^~:;,'\"_"} - set("OoIlSsZzB"))
SIZES = (60, 90)  # pixels of a font
WRITTEN = 20_000  # training digits to learn from
DIGIT_TIMES, SIGN_TIMES = 8, 6  # how often each printed one counts
LOST = 0.01  # share of the validation digits that count as signs
NO_SYMBOLS = ("cmex", "cmmi", "cmsy", "NonUni", "Siz")  # fonts in which letters look otherwise


def signs(project: Project, config: Config) -> None:
    """Write model.keras, whose logits are of a sign and of a digit, and the threshold between both."""
    if not finds_classes_of(config.data):
        raise UserError(f"signs are told from MNIST's digits, and data={config.data.name} has others: give data=mnist")
    train, val = training_examples(project, config)
    if not len(val.labels):
        raise UserError("no validation digits to choose a threshold by: give data.val_size above 0 and run `dvc repro`")
    printed, others = (np.stack(list(drawn_shapes(signs, matplotlib_fonts()))) for signs in (DIGITS, SIGNS))
    written = head(train, WRITTEN).images
    images = np.concatenate([written, np.tile(printed, (DIGIT_TIMES, 1, 1)), np.tile(others, (SIGN_TIMES, 1, 1))])
    labels = np.repeat(np.array([1, 0], np.uint8), [len(images) - SIGN_TIMES * len(others), SIGN_TIMES * len(others)])
    load_keras()
    from pipeline.model.build import build_model
    from pipeline.model.files import save_model
    from pipeline.model.inference import inference, start
    from pipeline.training.loop import fit

    start(config.seed)
    two_classes = config.data.model_copy(update={"classes": ["sign", "digit"]})
    model = build_model(project, config.model_copy(update={"data": two_classes}))
    digits = val._replace(labels=np.ones_like(val.labels))
    drawn = Examples(images, labels, np.arange(len(labels), dtype=np.int32))
    with TrainingProgress("signs", config.train.epochs, len(labels)) as progress:
        for epoch, seconds, _ in fit(model, config, drawn, digits, progress.batch):
            progress.epoch_done(epoch.train_accuracy, epoch.val_accuracy, seconds)
    threshold = float(np.quantile(digit_likeness(inference(model)(val.images)), LOST))
    save_json(project.signs / "threshold.json", {"threshold": threshold})
    save_model(project.signs / "model.keras", model)
    print(f"wrote {project.signs}: {LOST:.0%} of the validation digits, n = {len(val.labels):,}, count as signs")


def matplotlib_fonts() -> list[Path]:
    import matplotlib

    every = sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf"))
    return [path for path in every if not any(part in path.name for part in NO_SYMBOLS)]


def drawn_shapes(signs: Iterable[str], fonts: Iterable[Path]) -> Iterator[NDArray[np.uint8]]:
    """Yield what `find_digits` finds, uint8 [28, 28] each, where each sign is printed on a sheet of its own."""
    for path in fonts:
        for size in SIZES:
            font = ImageFont.truetype(path, size)
            for sign in signs:
                sheet = Image.new("L", (200, 160), 255)
                ImageDraw.Draw(sheet).text((50, 25), sign, 0, font)
                try:
                    yield from find_digits(np.asarray(sheet)).digits
                except UserError:  # as a full stop is too small for
                    continue


if __name__ == "__main__":
    main(signs)
