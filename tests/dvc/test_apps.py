"""Predicting, promoting, serving and robustness, as commands in a clone that was run through on generated digits."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import requests
from conftest import dvc, generated_digits, git, pipeline, ran, run, runs, start, store, write_idx
from PIL import Image


@pytest.fixture(scope="module")
def pages(clone, tmp_path_factory):
    """Ten of the generated digits as images, by what they show."""
    folder = tmp_path_factory.mktemp("pages")
    images, labels = generated_digits(10, seed=5)
    for image, label in zip(images, labels, strict=True):
        Image.fromarray(image).save(folder / f"{label}.png")
    return folder


def read_off(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """What `predict` printed of each file: its digits."""
    return {
        line.split(":")[0].rpartition("/")[2]: line.split(": ")[1]
        for line in done.stdout.splitlines()[1:]
        if ".png:" in line
    }


def test_predict_reads_files_folders_and_lists_alike(clone, pages):
    whole = pipeline(clone, "predict", f"input={pages}", "recipe=baseline", "show=true")
    assert whole.returncode == 0, whole.stderr
    found = read_off(whole)
    assert sorted(found) == [f"{digit}.png" for digit in range(10)]
    odd = "Screenshot (3), it's 9.41\u202fAM é.png"
    shutil.copy(pages / "3.png", clone / odd)
    one = pipeline(clone, "predict", f"input={odd}", "recipe=baseline")
    some = pipeline(clone, "predict", f"input=[{pages / '3.png'},{pages / '7.png'}]", "recipe=baseline")
    assert read_off(one) == {odd: found["3.png"]}
    assert read_off(some) == {"3.png": found["3.png"], "7.png": found["7.png"]}
    drawn = re.findall(r"^wrote (.+)$", whole.stdout, re.MULTILINE)
    assert len(drawn) == 10
    for file in drawn:
        with Image.open(clone / file) as sheet:
            assert sheet.width > 500 and sheet.height > 500


def test_predict_says_what_the_network_says_of_the_prepared_digits(clone, pages):
    code = f"""
import json, numpy as np
from pathlib import Path
from pipeline.apps.digit_finder import find_digits
from pipeline.apps.images import read_image
from pipeline.metrics import metrics
from pipeline.model.files import load_model
from pipeline.model.inference import predict
pages = [read_image(Path({str(pages)!r}) / f"{{k}}.png") for k in range(10)]
digits = np.stack([find_digits(page).digits[0] for page in pages])
probabilities = metrics.softmax(predict(load_model(Path("models/baseline/model.keras")), digits))
print(json.dumps([probabilities.argmax(1).tolist(), probabilities.max(1).tolist()]))
"""
    digits, confidence = json.loads(run("python", "-c", code, cwd=clone).stdout)
    done = pipeline(clone, "predict", f"input={pages}", "recipe=baseline")
    said = re.findall(r"^  1: (\d), ([\d.]+) %", done.stdout, re.MULTILINE)
    assert [int(digit) for digit, _ in said] == digits
    assert np.allclose([float(of) for _, of in said], 100 * np.array(confidence), atol=0.006)


def test_predict_names_what_it_cannot_read_and_reads_the_rest(clone, pages, tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    Image.fromarray(np.full((100, 100), 255, np.uint8)).save(tmp_path / "empty.png")
    given = f"input=[{tmp_path / 'notes.png'},{pages / '3.png'},{tmp_path / 'empty.png'}]"
    done = pipeline(clone, "predict", given, "recipe=baseline")
    assert done.returncode == 1
    assert list(read_off(done)) == ["3.png"]
    [line] = done.stderr.splitlines()
    assert "notes.png is no image" in line and "empty.png: the page is empty" in line


def test_predict_reads_every_page_of_a_file_and_names_the_empty_ones(clone, pages, tmp_path):
    sheets = [Image.new("L", (28, 28)), *(Image.open(pages / f"{digit}.png") for digit in (3, 7))]
    sheets[0].save(tmp_path / "scan.tif", save_all=True, append_images=sheets[1:])
    done = pipeline(clone, "predict", f"input={tmp_path / 'scan.tif'}", "recipe=baseline", "show=true")
    assert (done.returncode, done.stderr) == (0, "")
    alone = pipeline(clone, "predict", f"input=[{pages / '3.png'},{pages / '7.png'}]", "recipe=baseline")
    read = [line.rpartition(": ")[2] for line in done.stdout.splitlines() if "scan.tif, page" in line]
    assert read == ["give an image with digits that stand out", *read_off(alone).values()]
    assert f"{tmp_path / 'scan.tif'}, page 1 of 3: the page is empty" in done.stdout
    assert [name.rpartition("/")[2] for name in re.findall(r"^wrote (.+)$", done.stdout, re.MULTILINE)] == [
        "1_scan_2.png",
        "1_scan_3.png",
    ]


def test_predict_reads_a_file_whose_name_is_no_utf_8(clone, pages, tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes((pages / "3.png").read_bytes())
    done = pipeline(clone, "predict", f"input={tmp_path}", "recipe=baseline", "show=true")
    assert (done.returncode, done.stderr) == (0, "")
    assert list(read_off(done)) == ["caf\ufffd.png"] and "1_caf\ufffd.png" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give input=<image>"),
        (["input="], "give input=<image>"),
        (["input=[]"], "give input=<image>"),
        (["input=1e3"], "1e3 is no file"),
        (["input='~nobody/x.png'"], "~nobody/x.png is no file"),
        (["input={page}", "confidence=2"], "confidence=2: input should be less than or equal to 1"),
        (["input={page}", "confidence=nan"], "confidence=nan: input should be"),
        (["input={page}", "sure=0.9"], "sure is no key"),
        (["input=absent.png"], "absent.png"),
        (["input=docs"], "docs"),
        (["input={page}", "alias=champion"], "the registry has no champion of mnist"),
        (["input={page}", "run=" + 32 * "0"], "is no run of"),
        (["input={page}", "run=" + 32 * "0", "alias=champion"], "give one of them"),
        (["input={page}", "recipe=fast"], "models/fast/model.keras"),
    ],
)
def test_predict_refuses_in_one_line(clone, pages, words, said):
    done = pipeline(clone, "predict", *(word.format(page=pages / "3.png") for word in words))
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ") and said in line


@pytest.fixture(scope="module")
def contenders(clone):
    """Run ids of a network that learnt little, and of the one of DVC's stage."""
    weak = pipeline(clone, "train", "recipe=baseline", "train.epochs=1", "train.examples=20")
    assert weak.returncode == 0, weak.stderr
    [weak_id] = re.findall(r"MLflow run (\w{32})", weak.stdout)
    strong_id = next(run.info.run_id for run in runs(clone, "tags.dvc_stage = 'train@baseline'"))
    return weak_id, strong_id


def champion(clone):
    return store(clone).get_model_version_by_alias("mnist", "champion").run_id


def test_the_champion_moves_where_the_test_says_better_and_only_there(clone, contenders):
    weak, strong = contenders
    first = pipeline(clone, "promote", f"run={weak}")
    assert first.returncode == 0 and first.stdout.endswith("the first\n"), first.stderr
    assert champion(clone) == weak
    test = clone / "data/processed/test.npz"
    test.rename(test.with_suffix(".away"))
    moved = pipeline(clone, "promote", f"run={strong}")
    test.with_suffix(".away").rename(test)
    assert (moved.returncode, moved.stderr) == (0, "")
    assert "this run is better than the champion" in moved.stdout
    assert "50 validation examples" in moved.stdout and "p " in moved.stdout
    assert champion(clone) == strong
    stays = pipeline(clone, "promote", f"run={weak}")
    assert "the champion is better than this run" in stays.stdout
    assert f"models:/mnist@challenger is version 1, run {weak}; the champion stays version 2" in stays.stdout
    assert champion(clone) == strong
    assert "test_scored" not in store(clone).get_run(weak).data.tags, "promoting reads no test digits"
    again = pipeline(clone, "promote", f"run={strong}")
    assert "already" in again.stdout
    versions = {version.run_id: version for version in store(clone).search_model_versions("name = 'mnist'")}
    assert set(versions) == {weak, strong}  # each registered once
    card = (clone / "results/recipes/baseline/model_card.md").read_text()
    assert versions[strong].description == card and "baseline, a model for mnist" in card
    assert versions[weak].description == f"Not evaluated: python -m pipeline.evaluate run={weak}\n"
    assert pipeline(clone, "evaluate", f"run={weak}").returncode == 0
    assert pipeline(clone, "promote", f"run={weak}").returncode == 0
    renewed = {version.run_id: version for version in store(clone).search_model_versions("name = 'mnist'")}
    assert set(renewed) == {weak, strong} and "baseline, a model for mnist" in renewed[weak].description


def test_the_champion_loads_in_plain_mlflow_and_gives_the_logits_of_its_file(clone, contenders):
    code = """
import mlflow, numpy as np
from pathlib import Path
from pipeline.model.files import load_model
from pipeline.model.inference import predict
mlflow.set_tracking_uri("sqlite:///mlflow.db")
digits = np.load("data/processed/test.npz")["images"]
loaded = mlflow.pyfunc.load_model("models:/mnist@champion").predict(digits)
own = predict(load_model(Path("models/baseline/model.keras")), digits)
print(np.abs(np.asarray(loaded) - own).max())
"""
    done = run("python", "-c", code, cwd=clone, TF_CPP_MIN_LOG_LEVEL="3")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 1e-3


def test_promote_refuses_what_is_no_run_of_a_training(clone):
    assert pipeline(clone, "promote").stderr.startswith("error: no run given")
    done = pipeline(clone, "promote", "run=" + 32 * "0")
    assert done.returncode == 1 and "is no run of" in done.stderr and len(done.stderr.splitlines()) == 1


def test_predict_by_the_champion_and_by_its_run_are_alike(clone, contenders, pages):
    by_alias, by_run = (
        pipeline(clone, "predict", f"input={pages}", word) for word in ("alias=champion", f"run={contenders[1]}")
    )
    assert by_alias.returncode == 0, by_alias.stderr
    assert read_off(by_alias) == read_off(by_run) and "champion" in by_alias.stdout
    of_other_data = pipeline(
        clone, "predict", f"input={pages}", "alias=champion", f"data.sha256.train_images={64 * '0'}"
    )
    assert of_other_data.returncode == 1 and "was trained on another data.sha256.train_images" in of_other_data.stderr


@pytest.mark.slow
def test_a_run_of_other_pictures_than_todays_is_refused(clone, digits, contenders, pages, tmp_path):
    """Also where the split was made anew, and nothing but the run is of the pictures of yesterday."""
    images, _ = generated_digits(400, seed=2)
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    settings = clone / "conf/data/mnist.yaml"
    today = re.sub(
        r"train_images: \w{64}", f"train_images: {hashlib.sha256(images.tobytes()).hexdigest()}", settings.read_text()
    )
    settings.write_text(today)
    before = store(clone).get_run(contenders[0]).data.to_dictionary()
    try:
        done = dvc(clone, tmp_path, "repro", "preprocess")
        assert done.returncode == 0, done.stderr
        for verb, *words in (["evaluate"], ["predict", f"input={pages}"], ["promote"]):
            refused = pipeline(clone, verb, f"run={contenders[0]}", *words)
            [line] = refused.stderr.splitlines()
            assert refused.returncode == 1 and "was trained on another data.sha256.train_images than conf/" in line
        assert store(clone).get_run(contenders[0]).data.to_dictionary() == before
    finally:
        git(clone, "reset", "--quiet", "--hard")
        assert dvc(clone, digits, "checkout").returncode == 0


def test_a_champion_whose_run_was_deleted_is_named_and_the_next_one_is_the_first(clone, contenders, pages):
    weak, strong = contenders
    client = store(clone)
    client.set_registered_model_alias("mnist", "champion", "1")
    assert champion(clone) == weak
    client.delete_run(weak)
    command = (str(Path(sys.executable).with_name("mlflow")), "gc", "--run-ids", weak)
    done = run(
        *command, "--backend-store-uri", "sqlite:///mlflow.db", "--tracking-uri", "sqlite:///mlflow.db", cwd=clone
    )
    assert done.returncode == 0, done.stderr
    read = pipeline(clone, "predict", f"input={pages}", "alias=champion")
    [line] = read.stderr.splitlines()
    assert read.returncode == 1 and line.startswith(f"error: the champion of mnist is run {weak}, which was deleted: ")
    first = pipeline(clone, "promote", f"run={strong}")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.splitlines() == [
        "the run of the champion, version 1, was deleted: the next one is the first again",
        f"models:/mnist@champion is version 2, run {strong}: the first",
    ]
    assert champion(clone) == strong


def test_serve_answers_until_it_is_interrupted_and_its_port_is_its_own(clone, pages):
    with start("python", "-m", "pipeline.serve", "recipe=baseline", "port=0", cwd=clone) as server:
        address = re.search(r"draw at (http://127\.0\.0\.1:(\d+)),", server.stdout.readline())
        page = (pages / "3.png").read_bytes()
        answer = requests.post(f"{address[1]}/predict", data=page, headers={"Content-Type": "image/png"}, timeout=60)
        assert answer.status_code == 200 and len(answer.json()["digits"]) == 1
        second = pipeline(clone, "serve", "recipe=baseline", f"port={address[2]}")
        assert second.returncode == 1 and f"port={address[2]}" in second.stderr and len(second.stderr.splitlines()) == 1
        server.send_signal(signal.SIGINT)
        assert server.wait(20) in (0, 1, 130)
        assert "Traceback" not in server.stderr.read()


@pytest.mark.parametrize("word", ["host=", "host=0", "port=70000", "port=-1", "host=no.such.host.example"])
def test_serve_refuses_an_address_in_one_line(clone, word):
    done = pipeline(clone, "serve", "recipe=baseline", word)
    assert done.returncode == 1 and word.partition("=")[0] in done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_robustness_is_a_stage_of_dvc_that_one_word_turns_on(clone, digits):
    assert ran(dvc(clone, digits, "repro")) == []
    settings = (clone / "dvc.yaml").read_text()
    assert "robustness: []" in settings
    (clone / "dvc.yaml").write_text(settings.replace("robustness: []", "robustness: [baseline]"))
    try:
        done = dvc(clone, digits, "repro")
        assert done.returncode == 0, done.stderr
        assert ran(done) == ["robustness@baseline"]
        assert ran(dvc(clone, digits, "repro")) == []
        found = json.loads((clone / "results/robustness/baseline/robustness.json").read_text())
        of_test = json.loads((clone / "results/recipes/baseline/metrics.json").read_text())
        assert found["corruptions"]["identity"] == {"right": 100 - of_test["test_errors_no_tta"], "digits": 100}
        assert found["elsewhere"]["scikit-learn"]["digits"] == 1797
        [run_id] = re.findall(r"robustness.*MLflow run (\w{32})", done.stdout)
        logged = store(clone).get_run(run_id)
        assert logged.data.tags["dvc_stage"] == "train@baseline"
        kinds = [of["right"] / of["digits"] for kind, of in found["corruptions"].items() if kind != "identity"]
        assert logged.data.metrics["corrupted_accuracy"] == pytest.approx(np.mean(kinds))
        artifacts = {item.path for item in store(clone).list_artifacts(run_id, "robustness")}
        assert {"robustness/robustness.json", "robustness/corrupted.png"} <= artifacts
        suspects = (clone / "results/robustness/baseline/suspects_test.csv").read_text().splitlines()
        believed = [float(line.split(",")[3]) for line in suspects[1:]]
        assert len(believed) == 50 and believed == sorted(believed)
    finally:
        git(clone, "reset", "--quiet", "--hard")  # DVC stages its lock
        git(clone, "clean", "-fdq", "results")
