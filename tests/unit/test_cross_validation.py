"""Cross-validation: folds cut by hand and from files, put together again, and what is said of them."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, generated_digits

from pipeline import promote
from pipeline.base.errors import UserError
from pipeline.base.files import save_json
from pipeline.base.project import Project, open_project
from pipeline.data import blocks
from pipeline.data.examples import save_arrays, split_record
from pipeline.data.split import deal_folds, training_examples
from pipeline.experiments import folds
from pipeline.metrics import significance
from pipeline.reports import comparison_report, verdicts
from pipeline.reports.verdicts import Predictions, Side
from pipeline.tracking import queries
from pipeline.tracking.fingerprint import fingerprint


def test_folds_are_stratified_and_of_one_size():
    labels = np.random.default_rng(0).choice([3, 4, 9], 101, p=[0.6, 0.3, 0.1])
    dealt = deal_folds(labels, 5, 0)
    assert sorted(np.bincount(dealt)) == [20, 20, 20, 20, 21]
    for label in (3, 4, 9):
        assert np.ptp(np.bincount(dealt[labels == label], minlength=5)) <= 1
    assert np.array_equal(dealt, deal_folds(labels, 5, 0)) and not np.array_equal(dealt, deal_folds(labels, 5, 1))
    assert sorted(deal_folds(np.zeros(4), 4, 0)) == [0, 1, 2, 3], "leave one out"
    with pytest.raises(UserError, match=r"^train.folds=5 of 4 examples: give at most"):
        deal_folds(np.zeros(4), 5, 0)


@pytest.fixture
def split(tmp_path, data) -> Project:
    """50 training and 10 validation digits, and no test digits that could be read."""
    project, (images, labels) = Project(tmp_path, tmp_path), generated_digits(60, 0)
    source = np.random.default_rng(1).permutation(60).astype(np.int32)
    for name, part in (("train", np.sort(source[:50])), ("val", np.sort(source[50:]))):
        arrays = {"images": images[part], "labels": labels[part], "source_index": part}
        save_arrays(project.processed / f"{name}.npz", **arrays)
    save_json(project.processed / "split.json", split_record(data))
    return project


@pytest.mark.parametrize("in_memory", [blocks.IN_MEMORY, 1_000])
def test_the_folds_validate_on_every_example_once_and_train_on_the_others(compose, data, split, monkeypatch, in_memory):
    monkeypatch.setattr(blocks, "IN_MEMORY", in_memory)  # beyond which images are mapped
    images, labels = generated_digits(60, 0)
    seen = []
    for fold in range(3):
        config = compose("train.folds=3", f"train.fold={fold}").model_copy(update={"data": data})
        train, val = training_examples(split, config)
        for part in (train, val):
            assert np.array_equal(part.images, images[part.source_index])
            assert np.array_equal(part.labels, labels[part.source_index])
            assert isinstance(part.images, np.memmap) == (in_memory == 1_000)
        assert np.bincount(val.labels).tolist() == [2] * 10 and len(train.labels) == 40
        assert set(train.source_index) | set(val.source_index) == set(range(60))
        seen += val.source_index.tolist()
    assert sorted(seen) == list(range(60))
    assert sorted(path.name for path in split.processed.iterdir()) == ["split.json", "train.npz", "val.npz"]
    config = compose("train.folds=3", "train.fold=0", "train.examples=7").model_copy(update={"data": data})
    assert [len(part.labels) for part in training_examples(split, config)] == [7, 20]


def test_where_validation_begins_does_not_move_the_folds(compose, data, split, tmp_path):
    config = compose("train.folds=3", "train.fold=1").model_copy(update={"data": data})
    before = set(training_examples(split, config)[1].source_index)
    images, labels = generated_digits(60, 0)
    for name, part in (("train", np.arange(60)), ("val", np.arange(0))):
        arrays = {"images": images[part], "labels": labels[part], "source_index": part.astype(np.int32)}
        save_arrays(split.processed / f"{name}.npz", **arrays)
    assert set(training_examples(split, config)[1].source_index) == before


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["train.folds=5"], "train.folds=5 and train.fold=None"),
        (["train.fold=0"], "train.folds=None and train.fold=0"),
        (["train.folds=3", "train.fold=3"], "train.folds=3 and train.fold=3"),
    ],
)
def test_a_fold_that_is_not_there_is_refused(compose, words, given):
    with pytest.raises(UserError, match=rf"^{given}: give both, fold from 0, or sweep=folds for all$"):
        compose(*words)


def test_folds_need_no_validation_examples_for_patience(compose):
    words = ("train.patience=2", "data.val_size=0", "train.folds=5", "train.fold=4")
    assert compose(*words).train.fold == 4
    with pytest.raises(UserError, match="needs validation examples"):
        compose(*words[:2])


def test_runs_of_a_cross_validation_are_of_one_group(compose):
    def of(*words: str):
        return fingerprint(open_project(ROOT), compose(*words), [])

    folded = [of("train.folds=5", f"train.fold={fold}", f"seed={seed}") for fold in range(2) for seed in range(2)]
    assert len({one.group for one in folded}) == 1 and len({one.content_sha256 for one in folded}) == 4
    assert len({one.resume_key["configuration"] for one in folded}) == 4
    assert len({folded[0].group, of("train.folds=4", "train.fold=0").group, of().group}) == 3


def test_the_interval_over_folds_by_hand():
    # Of .990, .992, .994: S = .002, t(.975, 2) = 4.3027, and 1/3 + 1/2 = 5/6 in place of 1/3.
    mean = significance.folds_interval([0.990, 0.992, 0.994], 0.95)
    half = 4.3027 * 0.002 * math.sqrt(5 / 6)
    assert mean == (3, pytest.approx(0.992), pytest.approx(0.992 - half, abs=1e-6), pytest.approx(0.992 + half))
    assert math.isnan(significance.folds_interval([0.5, 0.6], 0.95).low)


def test_errors_summed_by_example_are_mcnemars_for_one_seed():
    generator = np.random.default_rng(0)
    for _ in range(20):
        a, b = generator.random((2, 400)) < 0.9
        pair, sums = significance.compare_runs(a, b, 0.95), significance.compare_sums(a[None], b[None], 0.95)
        assert sums == pytest.approx((pair.difference, pair.low, pair.high, pair.p))


@pytest.mark.parametrize(("n", "m"), [(1, 3), (2, 2), (3, 2), (5, 5)])
def test_p_of_summed_errors_is_the_share_of_all_swaps(n, m):
    generator = np.random.default_rng([n, m])
    for _ in range(20):
        a, b = generator.random((n, 9)) < 0.6, generator.random((m, 9)) < 0.8
        gains = n * b.sum(0) - m * a.sum(0)
        swapped = [abs(np.dot(signs, gains)) >= abs(gains.sum()) for signs in itertools.product((1, -1), repeat=9)]
        sums = significance.compare_sums(a, b, 0.95)
        assert sums.p == pytest.approx(np.mean(swapped)) and sums.difference == pytest.approx(b.mean() - a.mean())


def test_summed_errors_by_hand():
    # A has three digits wrong with both seeds, B one of them with one: gains of 2, 2 and 1 of 2 runs, so 5/8 to 0.
    a, b = np.ones((2, 10), bool), np.ones((2, 10), bool)
    a[:, :3], b[0, 2] = False, False
    sums = significance.compare_sums(a, b, 0.95)
    assert (sums.difference, sums.p) == (pytest.approx(0.25), pytest.approx(2 / 8))
    # Gains 1, 1, .5: 2.5 / 12 +- 1.96 sqrt((2.25 + 1) / 12 - (2.5 / 12)²) / sqrt(12).
    middle, half = 2.5 / 12, 1.959964 * math.sqrt((3.25 / 12 - (2.5 / 12) ** 2) / 12)
    assert (sums.low, sums.high) == (pytest.approx(middle - half, abs=1e-6), pytest.approx(middle + half, abs=1e-6))


def folded(name: str, right: np.ndarray, accuracies: list[float]) -> Side:
    return Side(name, {}, right, [], 1_000, 5_000, accuracies)


def test_a_sentence_on_folds_says_what_it_compares_on_and_what_it_holds_for():
    a, b = np.ones((2, 3, 1000), bool)
    a[:, :30], b[:, 500:505] = False, False
    sides = folded("a", a, [0.96, 0.97, 0.98]), folded("b", b, [0.99, 0.995, 1.0])
    [verdict] = verdicts.verdicts(sides, 0.95, "out-of-fold")
    # 30 digits against 5, all seeds alike, as McNemar's of one seed: 25 / 1002 +- 1.96 sqrt(36 - 25² / 1002) / 1002.
    single = significance.compare_runs(a[0], b[0], 0.95)
    assert verdict.p == pytest.approx(single.p) and verdict.test.low == pytest.approx(single.low)
    assert verdict.sentence.startswith("b is better than a: +2.50 points (95 % +1.33 to +3.66), p < 0.001")
    assert verdict.sentence.endswith(
        "n = 3 × 3 folds + 3 × 3 folds, 1,000 out-of-fold examples, errors summed by example over the seeds; this "
        "holds for these networks on other examples, not for other seeds"
    )
    # One seed against three is tested as well, and one against one counts who alone is correct.
    [uneven] = verdicts.verdicts((sides[0]._replace(correct=a[:1]), sides[1]), 0.95, "out-of-fold")
    assert uneven.p == pytest.approx(single.p) and "n = 1 × 3 folds + 3 × 3 folds" in uneven.sentence
    [alone] = verdicts.verdicts([side._replace(correct=side.correct[:1]) for side in sides], 0.95, "out-of-fold")
    assert (alone.test.only_a, alone.test.only_b) == (5, 30) and "summed" not in alone.sentence
    text = comparison_report.markdown(sides, [verdict], 0.95, "out-of-fold", 7)
    assert "had not been trained on it: the test examples were not read" in text and "7 different" not in text
    # Gains of .03, .025, .02: S = .005, so .025 +- 4.3027 * .005 * sqrt(5 / 6).
    assert "Over the 3 folds, the mean of the seeds in each: +2.50 points for b against a (95 % +0.54 to +4.46;" in text
    assert comparison_report.over_folds(*sides[::-1], 0.95) == comparison_report.over_folds(*sides, 0.95)
    other = comparison_report.over_folds(sides[0], folded("c", b, [0.99] * 4), 0.95)
    assert other == "a and c have other folds: no interval over folds."


def run(fold: int, seed: int, accuracy: float, group: str = "g0", filters: str = "8") -> SimpleNamespace:
    tags = {"group": group, "recipe": "fast", "swept": f'{{"seed": "{seed}", "filters": "{filters}"}}'}
    params = {"train.folds": "3", "train.fold": str(fold), "seed": str(seed), "data.val_examples": "2"}
    info = SimpleNamespace(run_id=f"{group}-{seed}-{fold}")
    data = SimpleNamespace(tags=tags, params=params, metrics={"val_accuracy": accuracy})
    return SimpleNamespace(info=info, data=data)


@pytest.fixture
def predicted(monkeypatch) -> None:
    """Fold f of three predicts the digits f and f + 3, the second one as a 7."""

    def artifact(run, name, folder):
        fold = int(run.data.params["train.fold"])
        (folder / name).write_text(f"index,label,prediction\n{fold + 3},{fold},7\n{fold},{fold},{fold}\n")
        return folder / name

    monkeypatch.setattr(queries, "artifact", artifact)


def test_a_sweep_of_folds_has_means_an_interval_and_all_predictions(predicted, tmp_path):
    runs = [run(fold, seed, 0.98 + fold / 100 - seed / 100) for seed in (0, 1) for fold in (2, 0, 1)]
    text, files, metrics = folds.renew_sweep(runs, tmp_path, 0.95)
    # Of the seeds .975, .985, .995 in the mean: S = .01, so .985 +- 4.3027 * .01 * sqrt(5 / 6) = .03928, at most 1.
    assert metrics["val_accuracy"] == pytest.approx(0.985) and metrics["val_accuracy_high"] == 1
    assert metrics["val_accuracy_low"] == pytest.approx(0.945722, abs=1e-5)
    assert "| filters=8 | group g0 |         2 × 3 |           98.50 % | 94.57 % to 100.00 % |" in text
    assert " 0.1 of 6 |" in text and "Nadeau and Bengio (2003)" in text and "test examples were not read" in text
    assert [file.name for file in files] == ["out_of_fold_g0_seed0.csv", "out_of_fold_g0_seed1.csv"]
    rows = ["0,0,0,0", "1,1,1,1", "2,2,2,2", "3,0,7,0", "4,1,7,1", "5,2,7,2"]
    assert files[1].read_text().splitlines() == ["index,label,prediction,fold", *rows]
    # Several configurations: the best first, and no metrics that could be of any of them.
    better = [run(fold, 0, 0.999, "g1", "16") for fold in range(3)]
    text, _, metrics = folds.renew_sweep([*runs, *better], tmp_path, 0.95)
    assert text.index("filters=16") < text.index("filters=8") and metrics == {}
    assert folds.renew_sweep([SimpleNamespace(data=SimpleNamespace(params={}))], tmp_path, 0.95) == ("", [], {})


def test_a_fold_is_not_promoted():
    """No other run could be compared with it: it validates on other examples."""
    with pytest.raises(UserError, match=r"^g0-1-2 is one fold of a cross-validation: "):
        promote._held_out(run(2, 1, 0.9))


def test_a_missing_fold_is_named_and_no_mean_is_given(predicted, tmp_path):
    runs = [run(fold, seed, 0.98) for seed in (0, 1) for fold in range(3) if (fold, seed) != (1, 1)]
    text, files, metrics = folds.renew_sweep(runs, tmp_path, 0.95)
    assert text.startswith("filters=8, seed=1: of 3 folds train.fold=1 is not there: the same command again ") and (
        files,
        metrics,
    ) == ([], {})


def test_the_predictions_of_all_folds_are_put_in_the_order_of_the_examples():
    one = folds.cross_validation([run(fold, seed, 0.5) for fold in (1, 0, 2) for seed in (10, 9)])
    parts = {}
    for fold, runs in enumerate(zip(*one.by_seed.values(), strict=True)):
        for of_seed in runs:
            parts[of_seed.info.run_id] = Predictions(
                *(np.array(part) for part in ([fold + 3, fold], [1, 2], [1, fold], [0.9, 0.8]))
            )
    joined = one.predictions(parts)
    assert list(joined) == ["g0, seed=9", "g0, seed=10"]
    assert joined["g0, seed=9"].example.tolist() == [0, 1, 2, 3, 4, 5]
    assert joined["g0, seed=9"].predictions.tolist() == [0, 1, 2, 1, 1, 1]
    assert joined["g0, seed=9"].confidence.tolist() == [0.8] * 3 + [0.9] * 3
    assert one.accuracies(lambda run: parts[run.info.run_id].accuracy) == [0.5, 0.5, 1.0]
