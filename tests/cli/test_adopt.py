"""Adopting pictures: in colour, of many classes, damaged ones, and jobs that are interrupted."""

from __future__ import annotations

import csv
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT
from PIL import Image

from benchmarks import shapes
from pipeline.adopt import adopt
from pipeline.apps import adoption
from pipeline.apps.images import fitted, read_image
from pipeline.base.errors import UserError
from pipeline.base.hydra import compose
from pipeline.base.project import Project, open_project
from pipeline.base.verb_schemas import AdoptConfig
from pipeline.data.examples import Examples, load_arrays, save_predictions
from pipeline.data.readers import array_sha256


@pytest.fixture
def project(tmp_path) -> Project:
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return open_project(tmp_path)


@pytest.fixture
def toys(project) -> Path:
    shapes.draw(project.root / "toys", 6, 12)
    return project.root / "toys"


def adopted(project: Project, *words: str) -> tuple[dict[str, np.ndarray], dict]:
    """Run the verb: the arrays, and what describes them."""
    overrides = ["path=toys", "data.channels=3", "data.image_shape=[12,12]", *words]
    adopt(project, compose(project, *overrides, schema=AdoptConfig))
    settings = yaml.safe_load((project.conf / "data" / "toys.yaml").read_text())
    return load_arrays(project.downloads / "toys" / "toys.npz"), settings


def test_pictures_in_colour_become_arrays_with_every_pixel_of_the_files(project, toys, capsys):
    arrays, settings = adopted(project)
    assert settings["channels"] == 3 and settings["classes"] == sorted(shapes.SHAPES) and settings["val_size"] == 4
    assert capsys.readouterr().out.startswith("10 classes, 48 training and 12 test images: wrote ")
    known = {
        np.asarray(Image.open(path)).tobytes(): settings["classes"].index(path.parent.name)
        for path in toys.glob("*/*.png")
    }
    for part, count in (("train", 48), ("test", 12)):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        assert images.shape == (count, 12, 12, 3) and labels.dtype == np.uint8
        assert [known.pop(image.tobytes()) for image in images] == labels.tolist()
    assert not known
    assert settings["sha256"] == {name: array_sha256(array) for name, array in arrays.items()}
    assert sorted(path.name for path in project.downloads.iterdir()) == ["toys"]


def test_every_kind_of_picture_becomes_red_green_and_blue(tmp_path):
    orange = Image.new("RGB", (4, 4), (250, 120, 10))
    kinds = {
        "a.png": (orange, (250, 120, 10)),
        "b.bmp": (orange, (250, 120, 10)),
        "c.gif": (orange.quantize(4), (250, 120, 10)),
        "d.png": (Image.new("L", (4, 4), 77), (77, 77, 77)),
        "e.png": (Image.new("RGBA", (4, 4), (9, 9, 9, 0)), (255, 255, 255)),
        "f.tif": (orange.convert("CMYK"), (250, 120, 10)),
        "g.png": (Image.fromarray(np.array([[0, 65535]], np.uint16)), (0, 0, 0)),
    }
    for name, (image, expected) in kinds.items():
        image.save(tmp_path / name)
        pixels = read_image(tmp_path / name, channels=3)
        assert pixels.dtype == np.uint8 and tuple(pixels[0, 0]) == expected, name
    wide = fitted(np.full((10, 20, 3), 200, np.uint8), [20, 20, 3])
    assert not wide[:5].any() and not wide[15:].any() and (wide[5:15] == 200).all()


def test_pictures_that_cannot_be_read_are_named_and_counted_and_left_out_only_when_asked(project, toys, capsys):
    for name in ("disc/0001.png", "star/x.jpg"):
        (toys / name).write_bytes(b"no picture")
    with pytest.raises(UserError) as error:
        adopted(project)
    message = str(error.value)
    assert message.startswith("2 of 61 pictures cannot be read, namely disc/0001.png, star/x.jpg: ")
    assert "0001.png is no image that can be read" in message and message.endswith("skip_damaged=true")
    assert not (project.conf / "data" / "toys.yaml").exists() and not (project.downloads / "toys").exists()
    arrays, _ = adopted(project, "skip_damaged=true")
    assert "left out, 2 that cannot be read: disc/0001.png, star/x.jpg" in capsys.readouterr().out
    counts = np.bincount(np.concatenate([arrays["train_labels"], arrays["test_labels"]]), minlength=10)
    assert counts.tolist() == [6, 6, 6, 5, 6, 6, 6, 6, 6, 6]


def test_a_link_to_pictures_elsewhere_is_taken_and_what_is_no_picture_by_its_name_is_left_out(project, toys, capsys):
    elsewhere = toys.rename(project.root.parent / "elsewhere")
    toys.symlink_to(elsewhere)
    (elsewhere / "star" / "list.json").write_text("{}")
    arrays, _ = adopted(project)
    assert len(arrays["train_labels"]) == 48 and (project.conf / "data/toys.yaml").exists()
    assert capsys.readouterr().out.startswith("ignored, no pictures of a class: star/list.json\n10 classes, ")
    shutil.rmtree(elsewhere)


def test_classes_without_a_picture_are_one_line(project, toys):
    for name in ("empty", "void"):
        (toys / name).mkdir()
    (toys / "void" / ".hidden").touch()
    with pytest.raises(UserError, match=r"^2 folders of .*toys have no picture: empty, void: give at least 5 to each"):
        adopted(project)


def test_a_job_that_was_interrupted_goes_on_and_gives_the_same_bytes(project, toys, monkeypatch):
    adopted(project)
    whole = (project.downloads / "toys" / "toys.npz").read_bytes()
    shutil.rmtree(project.downloads)
    read: list[str] = []

    def counted(path: Path, *arguments):
        read.append(path.name)
        if len(read) == 31:
            raise KeyboardInterrupt
        return read_image(path, *arguments)

    monkeypatch.setattr(adoption, "read_image", counted)
    monkeypatch.setattr(adoption, "AT_ONCE", 4)
    monkeypatch.setattr(adoption.os, "sched_getaffinity", lambda _: {0})
    with pytest.raises(KeyboardInterrupt):
        adopted(project)
    work = project.downloads / ".toys.adopting"
    with (work / "log.jsonl").open("a") as log, (work / "pixels").open("ab") as pixels:  # cut in the middle of a line
        log.write('["square/00')
        pixels.write(b"half")
    changed = toys / "bar" / "0000.png"
    changed.write_bytes(changed.read_bytes())  # a copy, say: it has another time
    done = len((work / "log.jsonl").read_text().splitlines()) - 2
    assert 24 <= done <= 31
    del read[:]
    monkeypatch.setattr(
        adoption, "read_image", lambda path, *rest: (read.append(path.name), read_image(path, *rest))[1]
    )
    adopted(project)
    assert (project.downloads / "toys" / "toys.npz").read_bytes() == whole
    assert len(read) == 60 - done + 1 and "0000.png" in read
    assert not work.exists()


def test_a_full_disk_leaves_nothing_under_the_final_name_and_the_same_command_goes_on(project, toys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (10_000, 24_000):  # bytes: of the pixels, which take 25,920, and of the arrays with their headers
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                adopted(project)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not (project.conf / "data" / "toys.yaml").exists()
        assert not (project.downloads / "toys" / "toys.npz").exists()
    arrays, _ = adopted(project)
    assert len(arrays["train_labels"]) == 48


def test_labels_of_many_classes_have_two_bytes_and_predictions_hold_the_highest_five(project, tmp_path):
    generator = np.random.default_rng(0)
    for label in range(300):
        (project.root / "toys" / f"{label:03}").mkdir(parents=True)
        for number in range(5):
            pixels = generator.integers(0, 256, (4, 4, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(project.root / "toys" / f"{label:03}" / f"{number}.bmp")
    arrays, settings = adopted(project, "data.image_shape=[4,4]")
    assert len(settings["classes"]) == 300 and arrays["test_labels"].dtype == np.uint16
    assert sorted(arrays["test_labels"]) == list(range(300))
    probabilities = np.full((2, 300), 0.001)
    probabilities[0, [299, 7, 8, 9, 10]] = [0.3, 0.2, 0.1, 0.05, 0.04]
    examples = Examples(arrays["test_images"][:2], np.array([8, 299], np.uint16), np.array([5, 6], np.int32))
    save_predictions(tmp_path / "predictions.csv", examples, probabilities)
    with (tmp_path / "predictions.csv").open() as file:
        first, second = csv.DictReader(file)
    assert [first[key] for key in ("index", "label", "prediction", "probability_label")] == ["5", "8", "299", "0.1"]
    assert [first[f"top_{k}"] for k in range(5)] == ["299", "7", "8", "9", "10"]
    assert [first[f"probability_top_{k}"] for k in range(5)] == ["0.3", "0.2", "0.1", "0.05", "0.04"]
    assert second["top_0"] == "0" and second["probability_label"] == "0.001"
