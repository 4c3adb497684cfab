"""Write a model for use elsewhere: format=saved_model, litert or onnx. It looks at an image once.

It is loaded again, and kept only if it predicts as Keras does on all validation images (training images, if none).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np

from pipeline.apps import export_formats
from pipeline.apps.predictor import model_files
from pipeline.base.command import main
from pipeline.base.console import quiet_import
from pipeline.base.errors import UserError
from pipeline.base.keras_import import load_keras
from pipeline.base.project import Project
from pipeline.base.verb_schemas import ExportConfig
from pipeline.data.examples import load_split


def export(project: Project, config: ExportConfig) -> None:
    """Write saved_model/, model.tflite or model.onnx into the job's folder."""
    export_formats.check_packages(config.format)
    images = next(filter(len, (load_split(project, part, config.data).images for part in ("val", "train"))))
    target = project.job().job_folder / export_formats.FORMATS[config.format].name
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        quiet_import(),
        model_files(project, config) as (model_file, _, description, _),
        tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as folder,
    ):
        load_keras()
        from pipeline.model.files import load_model
        from pipeline.model.inference import predict, start

        start(seed=0)
        model, exported = load_model(model_file), Path(folder) / target.name
        export_formats.write(model, config.format, exported)
        logits, expected = export_formats.load(config.format, exported)(images), predict(model, images)
        differ, largest = np.sum(logits.argmax(1) != expected.argmax(1)), np.abs(logits - expected).max()
        result = f"{differ} of {len(images):,} predictions differ from Keras's, logits by at most {largest:.1e}"
        if differ:
            raise UserError(f"{description} as {config.format}: {result}: {target.name} is not kept")
        shutil.rmtree(target, ignore_errors=True)  # a folder is not replaced
        exported.replace(target)
    size = sum(file.stat().st_size for file in [target, *target.rglob("*")] if file.is_file())
    print(f"wrote {target}, {size / 1e6:.2f} MB, of {description}: {result}")


if __name__ == "__main__":
    main(export)
