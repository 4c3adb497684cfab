"""Letters and other signs beside digits: a network is trained on two fonts, and asked about a third."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageDraw, ImageFont

from pipeline import predict, signs
from pipeline.apps import stress_tests
from pipeline.apps.digit_finder import DIGITS, find_digits
from pipeline.apps.predictor import knows_signs, load_predictor
from pipeline.base.errors import UserError
from pipeline.base.files import save_json, write_text
from pipeline.base.hydra import compose
from pipeline.base.project import Project, open_project
from pipeline.base.validation import validate
from pipeline.base.verb_schemas import PredictConfig
from pipeline.data.examples import save_arrays, split_record
from pipeline.model.build import build_cnn
from pipeline.model.files import save_model
from pipeline.model.inference import start

FONTS = {path.stem: path for path in stress_tests.text_fonts()}


def drawn(of, *fonts: str) -> np.ndarray:
    return np.stack(list(signs.drawn_shapes(of, [FONTS[font] for font in fonts])))


def test_a_full_stop_is_too_small_to_be_a_shape_and_an_equals_sign_is_one():
    assert len(list(signs.drawn_shapes(["."], [FONTS["DejaVuSans"]]))) == 0
    assert drawn(["="], "DejaVuSans").shape == (len(signs.SIZES), 28, 28)
    assert not set(signs.SIGNS) & {*"OoIlSsZzB|%", *DIGITS}


def test_every_font_has_ten_digits_that_differ():
    """Fonts without digits draw the same box, or a placeholder, for each."""
    for name in FONTS:
        shapes = drawn(DIGITS, name)
        assert len(shapes) >= 10 * len(signs.SIZES) and len(np.unique(shapes[::2], axis=0)) >= 8, name


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A project with an untrained model of digits, and a network of signs that was trained on two fonts."""
    folder = tmp_path_factory.mktemp("signs")
    project = Project(folder, folder)
    config = compose(open_project(ROOT), "train.epochs=6", "seed=1", name="signs")
    for name, fonts in (("train", ["DejaVuSans", "DejaVuSerif"]), ("val", ["DejaVuSans-Bold", "DejaVuSerif-Bold"])):
        digits = drawn(DIGITS, *fonts)
        labels, index = np.zeros(len(digits), np.uint8), np.arange(len(digits), dtype=np.int32)
        save_arrays(project.processed / f"{name}.npz", images=digits, labels=labels, source_index=index)
    save_json(project.processed / "split.json", split_record(config.data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stress_tests, "text_fonts", lambda: [FONTS[name] for name in ("DejaVuSans", "DejaVuSerif")])
        patch.setattr(signs, "DIGIT_TIMES", 20)
        signs.signs(project, config)
    start(0)
    save_model(project.model("accurate"), build_cnn(config.model, (28, 28), 10))
    write_text(
        project.recipe_results("accurate") / "val_predictions.csv", "index,label,prediction,probability_0\n0,1,1,0\n"
    )
    return project, validate(PredictConfig, config.model_dump())


def test_letters_of_another_font_are_signs_and_digits_are_not(learnt):
    project, config = learnt
    are_signs = load_predictor(project, config).are_signs
    letters = are_signs(drawn("AEFHKMNRWX", "DejaVuSans-BoldOblique"))
    digits = are_signs(drawn(DIGITS, "DejaVuSans-BoldOblique"))
    assert letters.mean() > 0.5 and digits.mean() < 0.2, (letters, digits)
    validation = drawn(DIGITS, "DejaVuSans-Bold", "DejaVuSerif-Bold")
    assert are_signs(validation).sum() == 1  # a hundredth of 40, or the next


def test_predict_says_which_shapes_are_rather_signs(learnt, tmp_path, capsys):
    project, config = learnt
    sheet = Image.new("L", (700, 200), 255)
    ImageDraw.Draw(sheet).text((40, 40), "KR3X7", 0, ImageFont.truetype(FONTS["DejaVuSans-Bold"], 90))
    sheet.save(tmp_path / "sheet.png")
    predict.predict(project, config.model_copy(update={"input": str(tmp_path / "sheet.png")}))
    *before, k, r, three, x, seven = capsys.readouterr().out.splitlines()
    said = [", unsure, perhaps a letter or another sign" in line for line in (k, r, three, x, seven)]
    expected = load_predictor(project, config).are_signs(find_digits(np.asarray(sheet)).digits)
    assert said == expected.tolist() and said[:4] == [True, True, False, True]
    assert three.startswith("  3: ") and "are taken for digits" not in "".join(before)


def test_without_it_no_shape_is_a_sign_and_predict_says_what_tells_them_apart(learnt, tmp_path, capsys):
    project, config = learnt
    plain = Project(tmp_path, tmp_path)
    for name in ("models", "results"):
        (tmp_path / name).symlink_to(project.root / name)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "processed").symlink_to(project.processed)
    assert knows_signs(project, config.data) and not knows_signs(plain, config.data)
    assert not load_predictor(plain, config).are_signs(drawn("AW", "DejaVuSans")).any()
    Image.fromarray(255 - drawn("3", "DejaVuSans")[0]).save(tmp_path / "three.png")
    predict.predict(plain, config.model_copy(update={"input": str(tmp_path / "three.png")}))
    assert "`python -m pipeline.signs`" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=fashion_mnist"], "signs are told from MNIST's digits, and data=fashion_mnist has others"),
        (["recipe=residual"], "recipe=residual has a network of your own"),
        (["data.val_size=0"], "no validation digits to choose a threshold by"),
    ],
)
def test_what_it_cannot_learn_from_is_refused(tmp_path, words, message):
    config = compose(open_project(ROOT), *words, name="signs")
    project = Project(tmp_path, tmp_path)
    for name, digits in (("train", drawn(DIGITS, "DejaVuSans")), ("val", np.zeros((0, 28, 28), np.uint8))):
        labels, index = np.zeros(len(digits), np.uint8), np.arange(len(digits), dtype=np.int32)
        save_arrays(project.processed / f"{name}.npz", images=digits, labels=labels, source_index=index)
    save_json(project.processed / "split.json", split_record(config.data))
    with pytest.raises(UserError, match=message):
        signs.signs(project, config)


def test_a_damaged_network_of_signs_is_named_with_what_makes_it_again(learnt):
    project, config = learnt
    file = project.signs / "model.keras"
    content = file.read_bytes()
    file.write_bytes(content[:100])
    try:
        with pytest.raises(UserError, match=r"or delete .*signs, which `python -m pipeline.signs` makes again"):
            load_predictor(project, config)
        assert not load_predictor(project, config, again=False).are_signs(drawn("AW", "DejaVuSans")).any()
    finally:
        file.write_bytes(content)
