"""Stage 3: train one recipe on the training digits, watching the validation digits. The test digits are not read."""

from __future__ import annotations

from pipeline import data
from pipeline.config import ROOT, Config, entry_point, in_dvc_stage, output_folders, to_dict
from pipeline.console import TrainingProgress, quiet_import
from pipeline.files import load_json, save_csv, save_yaml

SHOWN = 12  # digits drawn before and after augmentation


@entry_point
def train(config: Config) -> None:
    folder = ROOT / "data" / "processed"
    data.check_split(load_json(folder / "split.json"), config.data, folder)
    digits = data.load_digits(folder / "train.npz", config.data)
    digits = data.first(digits, config.train.examples)
    val = data.load_digits(folder / "val.npz", config.data)
    outputs = output_folders(config)
    size = len(digits.labels)

    with quiet_import():
        from pipeline import augment, debug, engine, metrics, model, tracking

    engine.start(config.seed)
    cnn = model.build_cnn(config.model, config.data.image_shape, config.data.classes)
    if config.train.profile_steps:
        print(debug.profile(cnn, config, digits))
        return
    with (
        tracking.training_run(config, digits, val, [folder / "train.npz", folder / "val.npz"]) as run,
        TrainingProgress(config.name, config.train.epochs, size) as progress,
    ):
        some = digits.images[:SHOWN]
        tracking.log_augmented(run, config, some, augment.random_affine(some, [config.seed, 0], config.augment).numpy())
        history = []
        for epoch, seconds in engine.fit(cnn, config, digits, val, progress.batch):
            history.append(epoch)
            tracking.log_epoch(run, epoch._asdict(), size, seconds)
            progress.epoch_done(epoch.train_accuracy, epoch.val_accuracy, seconds)
        if not in_dvc_stage():  # DVC's own files say it for a stage
            save_yaml(outputs.results / "config.yaml", to_dict(config))
        model_file = outputs.model / "model.keras"
        files = [outputs.results / "history.csv", outputs.results / "val_predictions.csv"]
        model.save_model(model_file, cnn)
        columns = zip(*history, strict=True)
        save_csv(files[0], dict(zip(engine.Epoch._fields, columns, strict=True)))
        data.save_predictions(files[1], val, metrics.softmax(engine.predict(cnn, val.images)))
        tracking.log_trained(run, cnn, model_file, files, config.data.image_shape)
    if config.train.examples and config.train.epochs > 1:
        print(debug.memorised(history, size))
    print(f"wrote {model_file}; MLflow run {run.info.run_id}")


if __name__ == "__main__":
    train()
