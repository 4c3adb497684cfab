"""Read the digits of photographs, scans or drawings: input=<file>, a folder, or 'input=[a.png,b.png]'.

Where the model is of other pictures than MNIST's digits, each input is one picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.apps.digit_finder import Page, finds_classes_of
from pipeline.apps.predictor import JOINED, UNSURE, Predictor, knows_signs, load_predictor, read_file
from pipeline.base.command import main
from pipeline.base.errors import UserError
from pipeline.base.project import Project
from pipeline.base.verb_schemas import PredictConfig
from pipeline.reports.tables import percent, plain


def predict(project: Project, config: PredictConfig) -> None:
    """Print the digits of each image, a line for each digit, or else the class of each; with `show` draw them."""
    project = project.job()
    files = _files(config.input)
    predictor = load_predictor(project, config)
    abstains = f"abstains below {percent(predictor.threshold)}" if predictor.threshold <= 1 else "always abstains"
    print(f"{predictor.description}, which {abstains}")
    if finds_classes_of(config.data) and not knows_signs(project, config.data):
        print("letters and other signs are taken for digits, until you run `python -m pipeline.signs` (half a minute)")
    errors = []
    for number, file in enumerate(files, 1):
        name = plain(str(file))
        try:
            for page_number, label, page in read_file(file, name, config.data):
                if isinstance(page, str):  # of a cover, or a back
                    print(f"{label}: {page}")
                    continue
                page_of = f"_{page_number}" if label != name else ""
                picture = project.job_folder / f"{number}_{Path(name).stem}{page_of}.png"
                _show(label, page, predictor, picture if config.show else None)
        except UserError as error:
            errors.append(str(error))
    if errors:
        raise UserError("; ".join(errors))


def _files(value: Any) -> list[Path]:
    """Return the image files that input=… names."""
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"input={value}: give input=<image>, a folder of images, or 'input=[a.png,b.png]'")
    files: list[Path] = []
    for path in map(Path, names):
        images = [file for file in (sorted(path.glob("[!.]*")) if path.is_dir() else [path]) if file.is_file()]
        if not images:
            raise UserError(f"{path} is no file, and no folder with files: give an image, or a folder of images")
        files += images
    return files


def _show(name: str, page: Page, predictor: Predictor, picture: Path | None) -> None:
    (probabilities, reasons), classes = predictor.answers(page.digits, page.joined), predictor.data.classes
    captions, lines = [], []
    for values, reason in zip(probabilities, reasons, strict=True):
        first, second = values.argsort()[:-3:-1]
        caption, said = classes[first], f"{classes[first]}, {percent(values[first])}"
        if reason == JOINED:
            caption, said = "?", f"{reason}, not read"
        elif reason:
            caption, said = f"{caption}?", f"{said}, {reason}"
        if reason == UNSURE:
            said += f" (or {classes[second]}, {percent(values[second])})"
        captions.append(caption)
        lines.append(f"  {len(captions)}: {said}")
    if page.left_out:
        lines.append(f"  left out: {page.left_out}, far larger, smaller or paler than the digits, or lines")
    print(f"{name}: {' '.join(captions)}", *lines, sep="\n")
    if picture:
        from pipeline.reports.plots import save_figure
        from pipeline.reports.sheets import plot_examples, plot_page

        if page.boxes:
            figure = plot_page(page.image, page.boxes, page.digits, captions)
        else:
            figure = plot_examples(page.digits, captions, 1, "")
        save_figure(picture, figure)
        print(f"wrote {picture}")


if __name__ == "__main__":
    main(predict)
