"""Write a network as a file for elsewhere, into Hydra's folder of this job: format=saved_model, litert or onnx.

The file is loaded back, and gets its name only if it predicts as Keras does on every validation image (training image,
where none were held out): one that does not is removed. It looks at each image once, so its errors are those "by one
view".
"""

from __future__ import annotations

from pipeline import data
from pipeline.beyond import chosen, formats
from pipeline.command import entry_point, job_folder
from pipeline.config import ExportConfig, PipelineError
from pipeline.console import quiet_import


@entry_point
def export(config: ExportConfig) -> None:
    formats.check_packages(config.format)
    images = data.load_split("val.npz", config.data).images
    if not len(images):
        images = data.load_split("train.npz", config.data).images
    target = job_folder() / formats.FORMATS[config.format].name
    with quiet_import(), chosen.files_of(config, config.run, config.alias) as files:
        from pipeline import engine
        from pipeline.model import load_model

        engine.start(seed=0)
        model = load_model(files.model)
        if model.input_shape[1:] != images.shape[1:]:
            raise PipelineError(f"{files.words} takes images of {model.input_shape[1:]}, expected {images.shape[1:]}")
        with formats.appearing(target) as temporary:
            formats.write(model, config.format, temporary)
            logits = formats.load(config.format, temporary)(images)
            check = formats.compared(logits, engine.predict(model, images))
            found = (
                f"{check.differ} of {len(logits):,} predictions differ from Keras's, "
                f"largest difference of a logit {check.largest:.1e}"
            )
            if check.differ:
                raise PipelineError(f"{files.words} as {config.format}: {found}: {target.name} is not kept")
    print(f"wrote {target}, {formats.size(target) / 1e6:.2f} MB, of {files.words}: {found}")


if __name__ == "__main__":
    export()
