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
from pipeline.base.command import main
from pipeline.base.console import TrainingProgress
from pipeline.base.errors import UserError
from pipeline.base.keras_import import load_keras
from pipeline.base.project import Project
from pipeline.base.schema import Config, Model
from pipeline.data.examples import Examples, head
from pipeline.data.split import training_examples

# Left out are those that look like digits in some font, O o I l | S s Z z B, and what has parts that do: % ' ".
SIGNS = sorted({*string.ascii_letters, *"!?#&+*=@$€./-()[]{}<>^~:;,_"} - set("OoIlSsZzB"))
SIZES = (60, 90)  # pixels of a font
WRITTEN = 20_000  # training digits to learn from
DIGIT_TIMES, SIGN_TIMES = 8, 6  # how often each printed one counts
LOST = 0.01  # share of the validation digits that count as signs


def signs(project: Project, config: Config) -> None:
    """Write data/signs/model.keras, whose logits are of a sign and of a digit. `predict` and `serve` ask it until the
    folder is deleted."""
    if not finds_classes_of(config.data):
        raise UserError(f"signs are told from MNIST's digits, and data={config.data.name} has others: give data=mnist")
    if not isinstance(config.model, Model):
        raise UserError(f"recipe={config.name} has a network of your own: give another recipe")
    train, val = training_examples(project, config)
    if not len(val.labels):
        raise UserError("no validation digits to choose a threshold by: give data.val_size above 0 and run `dvc repro`")
    from pipeline.apps import stress_tests  # it imports Matplotlib

    written, fonts = head(train, WRITTEN).images, stress_tests.text_fonts()
    printed, others = (np.stack(list(drawn_shapes(of, fonts))) for of in (DIGITS, SIGNS))
    images = np.concatenate([written, np.tile(printed, (DIGIT_TIMES, 1, 1)), np.tile(others, (SIGN_TIMES, 1, 1))])
    labels = np.repeat(np.array([1, 0], np.uint8), [len(images) - SIGN_TIMES * len(others), SIGN_TIMES * len(others)])
    load_keras()
    import keras

    from pipeline.model.build import build_cnn
    from pipeline.model.files import save_model
    from pipeline.model.inference import inference, start
    from pipeline.training.loop import fit

    start(config.seed)
    model = build_cnn(config.model, config.data.shape, 2)
    examples = Examples(images, labels, np.arange(len(labels), dtype=np.int32))
    digits = val._replace(labels=np.ones_like(val.labels))
    with TrainingProgress("signs", config.train.epochs, len(labels)) as progress:
        for epoch, seconds, _ in fit(model, config, examples, digits, progress.batch):
            progress.epoch_done(epoch.train_accuracy, epoch.val_accuracy, seconds)
    likeness = np.diff(inference(model)(val.images))[:, 0]  # to a digit, beyond that to a sign
    threshold = float(np.quantile(likeness, LOST))
    shifted = keras.layers.Rescaling(1.0, [0.0, -threshold])(model.output)  # so that the higher logit decides
    save_model(project.signs / "model.keras", keras.Model(model.input, shifted))
    lost = np.bincount(val.labels[likeness < threshold], minlength=len(DIGITS))
    of_each = ", ".join(f"{digit}: {count}" for digit, count in enumerate(lost) if count)
    print(f"wrote {project.signs}: of {len(val.labels):,} validation digits {lost.sum()} count as signs ({of_each})")


def drawn_shapes(characters: Iterable[str], fonts: Iterable[Path]) -> Iterator[NDArray[np.uint8]]:
    """Yield what `find_digits` finds, uint8 [28, 28] each, where each character is printed on a sheet of its own."""
    for path in fonts:
        for size in SIZES:
            font = ImageFont.truetype(path, size)
            for character in characters:
                sheet = Image.new("L", (200, 160), 255)
                ImageDraw.Draw(sheet).text((50, 25), character, 0, font)
                try:
                    yield from find_digits(np.asarray(sheet)).digits
                except UserError:  # as a full stop is too small for
                    continue


if __name__ == "__main__":
    main(signs)
