"""Read the digits of photographs, scans or drawings: input=<file>, a folder, or 'input=[a.png,b.png]'."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pipeline.beyond import images, sheet
from pipeline.command import entry_point, job_folder
from pipeline.config import PipelineError, PredictConfig
from pipeline.console import quiet_import
from pipeline.tables import percent, plain


@entry_point
def predict(config: PredictConfig) -> None:
    if config.data.classes != sheet.DIGITS:
        raise PipelineError(f"predict finds digits on paper, and {config.data.name} has other classes: give data=mnist")
    files = _files(config.input)
    with quiet_import():
        from pipeline.beyond import network

    cnn = network.load_network(config, config.run, config.alias, config.sure)
    print(f"by {cnn.words}; {f'sure from {percent(cnn.sure_above)} on' if cnn.sure_above <= 1 else 'never sure'}")
    refused = []
    for number, file in enumerate(files, 1):
        name = plain(os.fsencode(file).decode("utf-8", "replace"))  # bytes of another encoding cannot be printed
        try:
            page = sheet.read_sheet(images.read_image(file, name))
        except PipelineError as error:
            refused.append(str(error) if name in str(error) else f"{name}: {error}")
            continue
        _answer(name, page, cnn, job_folder() / f"{number}_{Path(name).stem}.png" if config.show else None)
    if refused:
        raise PipelineError("; ".join(refused))


def _files(given: Any) -> list[Path]:
    """The image files that input=… names."""
    words = given if isinstance(given, list) else [given]
    if not words or not all(isinstance(word, str) and word for word in words):
        raise PipelineError(f"input={given}: give input=<image>, a folder of images, or 'input=[a.png,b.png]'")
    files: list[Path] = []
    for path in map(Path, words):
        if path.is_dir():
            files += sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        elif path.is_file():
            files.append(path)
        else:
            raise PipelineError(f"{path} is not there: give an image, or a folder of images")
    if not files:
        raise PipelineError(f"{', '.join(words)} holds no file: give an image, or a folder of images")
    return files


def _answer(name: str, page: sheet.Sheet, cnn: Any, picture: Path | None) -> None:
    """Print a line a digit, and draw the page where that is asked for."""
    found, names = cnn.probabilities(page.digits), cnn.classes
    digits, confidence = found.argmax(1), found.max(1)
    captions = [
        names[digit] if sure >= cnn.sure_above else f"{names[digit]}?"
        for digit, sure in zip(digits, confidence, strict=True)
    ]
    print(f"{name}: {' '.join(captions)}")
    for number, (digit, sure) in enumerate(zip(digits, confidence, strict=True), 1):
        second = found[number - 1].argsort()[-2]
        doubt = (
            f", not sure (or {names[second]}, {percent(found[number - 1, second])})" if sure < cnn.sure_above else ""
        )
        print(f"  {number}: {names[digit]}, {percent(sure)}{doubt}")
    if picture:
        from pipeline import plots
        from pipeline.beyond.drawing import plot_sheet

        plots.save_figure(picture, plot_sheet(page, captions, confidence >= cnn.sure_above))
        print(f"wrote {picture}")


if __name__ == "__main__":
    predict()
