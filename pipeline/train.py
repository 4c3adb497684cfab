"""Stage 3: train one recipe on the training examples, watching the validation examples. The test examples are not read.

With -m, or one of the presets in conf/sweep, it trains every combination of values, as children of one MLflow run.
"""

from __future__ import annotations

from pipeline import data, sweep
from pipeline.command import entry_point, output_folders, overrides
from pipeline.config import ROOT, Config, in_dvc_stage
from pipeline.console import quiet_import
from pipeline.files import load_json
from pipeline.surroundings import identity


@entry_point
def train(config: Config) -> float:
    folder = ROOT / "data" / "processed"
    data.check_split(load_json(folder / "split.json"), config.data, folder)
    files = [folder / "train.npz", folder / "val.npz"]
    examples, val = (data.load_examples(file, config.data) for file in files)
    examples = data.first(examples, config.train.examples)

    with quiet_import():
        from pipeline import debug, training

    split, outputs = training.Split(examples, val), output_folders(config)
    if job := sweep.job():
        return job.run(config, split, identity(config, files), outputs)
    words = [word for word in overrides() if not word.startswith("recipe=")]
    name = config.name if in_dvc_stage() else " ".join([config.name, *words])
    trained = training.train_tracked(config, split, identity(config, files), outputs, name)
    if config.train.examples and config.train.epochs > 1:
        print(debug.memorised(trained.history, len(examples.labels)))
    print(f"wrote {trained.model_file}; {trained.where}")
    return trained.history[-1].val_accuracy


if __name__ == "__main__":
    with sweep.reported():
        train()
