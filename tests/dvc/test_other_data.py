"""Other data than MNIST, the whole way: pictures of one's own, and a set in the form of Fashion-MNIST made here."""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import copy_repository, dvc, generated_digits, git, pipeline, ran, run, small_repository, write_idx
from PIL import Image

from pipeline import adopt
from pipeline.data.split import split
from pipeline.fetch import find_arrays
from pipeline.model import build, inference
from pipeline.training import loop

KINDS = ("png", "jpg", "bmp")


@pytest.fixture(scope="module")
def repository(tmp_path_factory, digits) -> Path:
    folder = tmp_path_factory.mktemp("other")
    small_repository(folder, digits)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "start")
    return folder


def draw(folder: Path, classes: list[str], each: int) -> None:
    """Pictures of several sizes and kinds, a block at another place a class."""
    images, labels = generated_digits(each * len(classes), 3, len(classes))
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / classes[label]
        place.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(image).resize((20 + number % 30, 20 + number % 30))
        picture.convert("RGB" if number % 2 else "L").save(place / f"{number}.{KINDS[number % 3]}")


def choose(repository: Path, name: str) -> None:
    text = (repository / "params.yaml").read_text()
    (repository / "params.yaml").write_text(re.sub(r"dataset: \w+", f"dataset: {name}", text))


CLASSES = ["A & B", "plus", "zoë"]


@pytest.fixture(scope="module")
def letters(repository) -> Path:
    """The repository with pictures of one's own, adopted, read and split."""
    draw(repository / "letters", CLASSES, 30)
    (repository / "letters" / "plus" / "copy.png").write_bytes((repository / "letters" / "plus" / "1.jpg").read_bytes())
    done = pipeline(repository, "adopt", "path=letters")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 classes, 72 training and 18 test images: wrote ")
    settings = yaml.safe_load((repository / "conf/data/letters.yaml").read_text())
    assert settings["classes"] == CLASSES and settings["val_size"] == 7
    choose(repository, "letters")
    done = dvc(repository, "", "repro", "preprocess")
    assert done.returncode == 0, done.stdout + done.stderr
    return repository


def test_pictures_of_ones_own_are_adopted_read_and_split(letters):
    repository = letters
    for name in ("train", "test"):
        arrays = np.load(repository / f"data/processed/{name}.npz")
        assert set(arrays["labels"]) == {0, 1, 2}
        # A class is a block at a place of its own, and the label says which.
        bright = [arrays["images"][arrays["labels"] == label].mean(0).argmax() for label in range(3)]
        assert len(set(bright)) == 3
    assert ran(dvc(repository, "", "repro", "preprocess")) == []
    before = (repository / "conf/data/letters.yaml").read_bytes()
    assert pipeline(repository, "adopt", "path=letters").returncode == 0
    assert (repository / "conf/data/letters.yaml").read_bytes() == before
    draw(repository / "other" / "letters", CLASSES, 8)
    other = pipeline(repository, "adopt", "path=other/letters")
    assert (
        other.returncode == 1
        and "conf/data/letters.yaml describes other data: give the folder another name" in other.stderr
    )
    assert (repository / "conf/data/letters.yaml").read_bytes() == before
    published = pipeline(repository, "reproduce", "run=published", "data=letters")
    assert published.returncode == 1 and "no run of letters was published" in published.stderr


@pytest.mark.slow
def test_pictures_of_ones_own_go_the_whole_way(letters):
    repository = letters
    done = dvc(repository, "", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    for recipe in ("baseline", "accurate"):
        results = repository / "results" / "recipes" / recipe
        rows = (results / "per_class.csv").read_text().splitlines()
        assert [row.split(",")[0] for row in rows[1:]] == CLASSES
        assert len((results / "predictions.csv").read_text().splitlines()) == 1 + 18
        card = (results / "model_card.md").read_text()
        assert "a model for letters" in card and "18 test images" in card and "zoë" in card
    table = (repository / "results/comparison.md").read_text()
    assert "published" not in table and "baseline" in table and "18 test examples" in table
    assert ran(dvc(repository, "", "repro")) == []
    (repository / "letters" / "plus" / "1.jpg").unlink()
    (repository / "letters" / "plus" / "copy.png").unlink()
    assert pipeline(repository, "adopt", "path=letters").returncode == 0
    assert {"fetch", "preprocess"} <= set(ran(dvc(repository, "", "repro", "preprocess")))


def test_a_folder_named_like_a_number_gives_a_name_that_can_be_typed_and_leftovers_are_named(repository, tmp_path):
    draw(repository / "2024", ["a", "b"], 8)
    (repository / "2024" / "__MACOSX").mkdir()
    (repository / "2024" / "__MACOSX" / "._0.png").write_bytes(b"no picture")
    for name in ("a/Thumbs.db", "b/desktop.ini", ".DS_Store", "a/more/x.png"):
        (repository / "2024" / name).parent.mkdir(exist_ok=True)
        (repository / "2024" / name).write_bytes(b"no picture")
    done = pipeline(repository, "adopt", "path=2024")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "ignored, no pictures of a class: .DS_Store, __MACOSX, a/Thumbs.db, a/more, b/desktop.ini",
        f"2 classes, 13 training and 3 test images: wrote {repository / 'conf/data/data_2024.yaml'}",
        "next: `dataset: data_2024` in params.yaml, and `dvc repro`",
    ]
    # DVC's queue: a checkout of what git knows, without data/downloads, that says where the user's repository is.
    (tmp_path / "checkout").mkdir()
    copy_repository(tmp_path / "checkout")
    shutil.copy(repository / "conf/data/data_2024.yaml", tmp_path / "checkout/conf/data/data_2024.yaml")
    words = ("python", "-m", "pipeline.fetch", "data=data_2024")
    alone = run(*words, cwd=tmp_path / "checkout")
    assert alone.returncode == 1 and "data_2024 is gone, and data_2024 was not published" in alone.stderr
    done = run(*words, cwd=tmp_path / "checkout", DVC_ROOT=str(repository), MNIST_SOURCE="/absent")
    assert (done.returncode, done.stderr) == (0, "")
    raw = np.load(done.stdout.removeprefix("wrote ").strip())
    assert {key: len(raw[key]) for key in ("train_images", "test_labels")} == {"train_images": 13, "test_labels": 3}


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        *[(text, f"data_{text}") for text in ("2024", "1e3", "007", "1_000", "null", "True", "no", "3d")],
        *[(text, f"data_{text}") for text in ("2024-01-31", "0x1f", "9447e1230643", "2024-letters")],
        *[(text, text) for text in ("letters", "none", "g9447e1230643", "A.b_c-1")],
    ],
)
def test_the_name_of_a_data_set_is_what_hydra_and_yaml_read_as_text(compose, tmp_path, folder, name):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert adopt.data_name(folder) == name
    assert OverridesParser.create().parse_override(f"data={name}").value() == name
    assert yaml.safe_load(f"dataset: {name}") == {"dataset": name}


def many(folder: Path) -> None:
    for number in range(257):
        (folder / f"class {number}").mkdir(parents=True)


def few(folder: Path) -> None:
    draw(folder, ["a", "b"], 4)


def twice(folder: Path) -> None:
    draw(folder, ["a", "b"], 8)
    (folder / "b" / "same.png").write_bytes((folder / "a" / "0.png").read_bytes())


def text(folder: Path) -> None:
    draw(folder, ["a", "b"], 8)
    (folder / "a" / "notes.png").write_text("no picture")


@pytest.mark.parametrize(
    ("make", "words", "said"),
    [
        (None, [], "is no folder in this repository"),
        (None, ["path=absent"], "is no folder in this repository"),
        (None, ["path=/tmp"], "is no folder in this repository"),
        (None, ["path=../x"], "is no folder in this repository"),
        (lambda folder: draw(folder, ["a"], 8), ["path=mine"], "has 1 folders of pictures"),
        (many, ["path=mine"], "257 folders of "),
        (few, ["path=mine"], "has 4 different pictures: give at least 5"),
        (twice, ["path=mine"], "the same picture in two classes"),
        (text, ["path=mine"], "notes.png is no image"),
        (lambda folder: draw(folder, ["a", "b" * 41], 8), ["path=mine"], "data.classes"),
        (lambda folder: draw(folder, ["a", "b"], 8), ["path=mine", "data.image_shape=[0,28]"], "data.image_shape"),
    ],
)
def test_adopt_refuses_in_one_line_and_writes_nothing(repository, tmp_path, make, words, said):
    mine = repository / "mine"
    if make:
        make(mine)
    try:
        done = pipeline(repository, "adopt", *words)
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert line.startswith("error: ") and said in line
        assert not (repository / "conf/data/mine.yaml").exists() and not (repository / "data/downloads/mine").exists()
    finally:
        run("rm", "-rf", str(mine))


def test_a_folder_named_like_published_data_is_refused(repository):
    draw(repository / "mnist", ["a", "b"], 8)
    before = (repository / "conf/data/mnist.yaml").read_bytes()
    done = pipeline(repository, "adopt", "path=mnist")
    assert done.returncode == 1 and "conf/data/mnist.yaml describes other data" in done.stderr
    assert (repository / "conf/data/mnist.yaml").read_bytes() == before


@pytest.mark.slow
def test_data_in_the_form_of_fashion_mnist_go_the_whole_way(repository, digits, tmp_path):
    """The real pictures take minutes: files of the same form, and their hashes in the same places."""
    settings = (repository / "conf/data/fashion_mnist.yaml").read_text().replace("val_size: 5000", "val_size: 50")
    for part, key, size, seed in (("train", "train", 400, 5), ("t10k", "test", 100, 6)):
        parts = zip(("images-idx3", "labels-idx1"), generated_digits(size, seed), strict=True)
        for kind, array in parts:
            write_idx(tmp_path / "plain", array)
            # Packed by nobody's gzip but this one's: the arrays are what is known.
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress((tmp_path / "plain").read_bytes(), 1))
            name, digest = f"{key}_{kind.split('-')[0]}", hashlib.sha256(array.tobytes()).hexdigest()
            settings = re.sub(rf"{name}: \w{{64}}", f"{name}: {digest}", settings)
    (repository / "conf/data/fashion_mnist.yaml").write_text(settings)
    choose(repository, "fashion_mnist")
    done = dvc(repository, digits, "repro", FASHION_MNIST_SOURCE=str(tmp_path))  # MNIST_SOURCE is of other data
    assert done.returncode == 0, done.stdout + done.stderr
    rows = (repository / "results/recipes/baseline/per_class.csv").read_text().splitlines()
    assert rows[1].startswith("T-shirt/top,") and rows[10].startswith("Ankle boot,")
    assert "published" not in (repository / "results/comparison.md").read_text()
    for verb, words, said in (
        ("evaluate", ["recipe=baseline"], "data.name=mnist, but the split in "),
        ("serve", ["recipe=baseline"], "data.name=mnist, but the split in "),
        ("compare", [], "is of data=fashion_mnist, not of mnist: give data=<that>"),
        ("predict", ["data=fashion_mnist", "input=x.png"], "x.png is no file"),
    ):
        done = pipeline(repository, verb, *words)
        assert done.returncode == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1
    assert pipeline(repository, "compare", "data=fashion_mnist").returncode == 0
    words = ("python", "-m", "pipeline.fetch", "data=fashion_mnist")
    done = run(*words, cwd=repository, FASHION_MNIST_SOURCE=str(digits))
    assert done.returncode == 1 and "FASHION_MNIST_SOURCE is not fashion_mnist: train_images has SHA" in done.stderr


@pytest.mark.slow
def test_the_real_fashion_mnist_of_debians_package_is_taken_as_it_is_and_trains(compose, tmp_path):
    config = compose(
        "data=fashion_mnist", "recipe=accurate", "data.fraction=0.02", "data.val_size=200", "train.epochs=1"
    )
    [debian] = [source for source in config.data.sources if source.url.startswith("/")]
    if not Path(debian.url).parent.is_dir():
        pytest.skip(f"no {Path(debian.url).parent}: apt-get install dataset-fashion-mnist")
    raw = find_arrays(config.data.model_copy(update={"sources": [debian]}), None, tmp_path)
    # The well-known first labels; the classes are balanced.
    assert list(raw["train_labels"][:5]) == [9, 0, 0, 3, 0] and list(raw["test_labels"][:3]) == [9, 2, 1]
    assert np.bincount(raw["train_labels"]).tolist() == 10 * [6_000]
    assert np.bincount(raw["test_labels"]).tolist() == 10 * [1_000]
    pictures = split(raw, config.data)
    assert [len(pictures[name].labels) for name in ("train", "val", "test")] == [1_000, 200, 200]
    inference.start(config.seed)
    cnn = build.build_cnn(config.model, (28, 28), 10)
    [(epoch, _, _)] = loop.fit(cnn, config, pictures["train"], pictures["val"], lambda done, accuracy: None)
    assert epoch.train_accuracy > 0.2 and epoch.train_loss < np.log(10)  # by chance 0.1, and log 10
