"""Which side is better, in words: by hand from given predictions."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

from pipeline.base.errors import UserError
from pipeline.base.project import open_project
from pipeline.experiments import compare_runs
from pipeline.experiments.compare_runs import published_sentence
from pipeline.metrics import significance
from pipeline.reports import comparison_report as report
from pipeline.reports import verdicts
from pipeline.reports.verdicts import Predictions, Side


def side(name: str, *right: int, size: int = 1000, **values: str) -> Side:
    """Runs that have the first so many digits right."""
    runs = np.arange(size) < np.array(right)[:, None]
    return Side(name, {key: {value} for key, value in values.items()}, runs, [60.0] * len(right), 1_000, 5_000)


def single(name: str, wrong: list[int], size: int = 1000) -> Side:
    return Side(name, {}, ~np.isin(np.arange(size), wrong)[None], [60.0], 1_000, 5_000)


def answer(*sides: Side, of: str = "test") -> str:
    return verdicts.verdicts(sides, 0.95, of)[0].sentence


def test_two_runs_by_mcnemar():
    a, b = single("a", list(range(25))), single("b", list(range(100, 110)))
    # 25 against 10 discordant: p = .017; 15 / 1002 +- 1.96 sqrt(36 - 15² / 1002) / 1002.
    assert answer(a, b).startswith("b is better than a: +1.50 points (95 % +0.33 to +2.67), p = 0.017, n = 1 + 1")
    assert answer(a, b).endswith("1,000 test examples; this holds for these two runs, not for other seeds")
    assert answer(b, a).startswith("b is better than a: +1.50 points (95 % +0.33 to +2.67), p = 0.017")
    c = single("c", list(range(200, 215)))
    assert answer(a, c, of="validation").startswith("no difference shown between a and c: +1.00 points for c (95 % ")
    assert "p = 0.154" in answer(a, c) and "1,000 validation examples" in answer(a, c, of="validation")


def test_two_groups_by_their_seeds():
    a, b = side("a", 970, 971, 972, 973, 974), side("b", 980, 981, 982, 983, 984)
    # 1 of the 252 orders, either way round; Welch: variances 2.5e-6, t(8) = 2.306.
    half = 2.306 * math.sqrt(2 * 2.5e-6 / 5) * 100
    expected = f"b is better than a: +1.00 points (95 % +{1 - half:.2f} to +{1 + half:.2f}), p = 0.008, n = 5 + 5"
    assert answer(a, b) == f"{expected}, 1,000 test examples"
    assert answer(b, a) == f"{expected}, 1,000 test examples"


def test_no_difference_says_how_many_seeds_it_would_take():
    a, b = side("a", 970, 980, 990), side("b", 975, 985, 995)
    # Half a standard deviation apart: Cohen's 64 a side; and 3 + 3 cannot go below 2 of 20.
    assert answer(a, b).endswith(
        "; so few runs cannot show one: the smallest p of n = 3 + 3 is 0.10"
        "; about 64 seeds per side would be needed to show a difference of this size"
    )
    same = answer(side("a", 970, 980), side("b", 980, 970))
    assert same.startswith("no difference shown between a and b: +0.00 points (95 % ")
    assert same.endswith("more than 10,000 seeds per side would be needed to show a difference of this size")


def test_equal_accuracies_have_an_interval_of_their_own_width():
    a, b = single("a", list(range(20))), single("b", list(range(100, 120)))
    # 20 against 20 discordant of 1,000, and half a digit more in each cell: 1.96 sqrt(41 / 1002) / sqrt(1002).
    assert "+0.00 points (95 % -1.25 to +1.25), p = 1.000" in answer(a, b)
    # Deviations of sqrt(50) over 2 + 2 runs: t(2) = 4.3027, times sqrt(25 + 25).
    assert "+0.00 points (95 % -3.04 to +3.04), p = 1.000" in answer(side("a", 970, 980), side("b", 980, 970))


def test_the_interval_is_adjusted_as_p_is():
    a, b, c = single("a", list(range(25))), single("b", list(range(100, 110))), single("c", list(range(200, 208)))
    sentences = [verdict.sentence for verdict in verdicts.verdicts([a, b, c], 0.95, "test")]
    # z of 1 - .05 / 6 is 2.394: 15 / 1002 +- 2.394 sqrt(36 - 15² / 1002) / 1002 is +.066 to +2.928, and p = 2 * .0167.
    # 17 / 1002 +- 2.394 sqrt(34 - 17² / 1002) / 1002, and p = 3 * .00455.
    assert "b is better than a: +1.50 points (95 % +0.07 to +2.93), p = 0.033, both adjusted for 3" in sentences[0]
    assert "c is better than a: +1.70 points (95 % +0.31 to +3.08), p = 0.014, both adjusted for 3" in sentences[1]


def test_where_test_and_interval_disagree_the_test_decides():
    # Welch: +2.00 +- .23, but 3 + 3 runs cannot show anything.
    assert "+2.00 points for b (95 % +0.00 to +2.23), p = 0.100" in answer(
        side("a", 970, 971, 972), side("b", 990, 991, 992)
    )
    # 1 of the 252 orders, either way round; Welch: t(4) = 2.7764, so .68 +- 2.7764 * .58, which is -.93 to 2.29.
    groups = side("a", 970, 970, 970, 970, 970), side("b", 971, 971, 971, 971, 1000)
    assert "b is better than a: +0.68 points (95 % above 0 to +2.29), p = 0.008" in answer(*groups)
    assert "b is better than a: +0.68 points (95 % above 0 to +2.29), p = 0.008" in answer(*groups[::-1])


def test_no_sentence_and_no_figures_contradict_themselves():
    generator = np.random.default_rng(3)
    seen = set()
    for _ in range(100):
        chances = generator.choice([0.9, 0.95, 0.99], 3)
        runs = generator.choice([1, 3, 5], 3)
        sides = [
            Side(name, {}, generator.random((n, 200)) < chance, [], 0, 0)
            for name, n, chance in zip("abc", runs, chances, strict=True)
        ]
        for verdict in verdicts.verdicts(sides, 0.95, "test"):
            if verdict.test is None:
                continue
            assert verdict.shown == (verdict.p < 0.05) == (" is better than " in verdict.sentence)
            assert -1 <= verdict.test.low <= verdict.test.difference <= verdict.test.high <= 1
            [(low, high)] = re.findall(r"\(95 % (above 0|[+-][\d.]+) to ([+-][\d.]+)\), p ", verdict.sentence)
            if verdict.shown:
                assert (low == "above 0" or float(low) > 0) and float(high) > 0
                assert verdict.test.low >= 0 or verdict.test.high <= 0
            else:
                assert float(low) <= 0 <= float(high) and verdict.test.low <= 0 <= verdict.test.high
            seen.add((verdict.shown, type(verdict.test).__name__, " adjusted for " in verdict.sentence))
    assert len(seen) == 8  # all kinds


def test_sides_whose_runs_are_all_alike_have_no_interval():
    [verdict] = verdicts.verdicts([side("a", *[970] * 4), side("b", *[980] * 4)], 0.95, "test")
    assert verdict.p == pytest.approx(2 / 70)  # two of the 70 ways to part eight runs
    assert verdict.sentence.startswith(
        "b is better than a: +1.00 points (all runs of a side equal), p = 0.029, n = 4 + 4"
    )


@pytest.mark.parametrize(("right", "where"), [(975, "inside"), (969, "below"), (981, "above")])
def test_one_seed_against_several_is_placed_and_not_tested(right, where):
    [verdict] = verdicts.verdicts([side("one", right), side("many", 970, 975, 980)], 0.95, "test")
    assert verdict.test is None and math.isnan(verdict.p)
    assert f"lies {where} the range of the 3 of many, 97.00 % to 98.00 %" in verdict.sentence
    assert verdict.sentence.startswith("one has one seed, which says nothing about other seeds")


def test_several_are_adjusted_together():
    sides = [single("a", list(range(25))), single("b", list(range(100, 110))), single("c", [1])]
    found = verdicts.verdicts(sides, 0.95, "test")
    assert [(verdict.a, verdict.b) for verdict in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    ordered = sorted(verdict.test.p for verdict in found)
    expected = [ordered[0] * 3, max(ordered[0] * 3, ordered[1] * 2), max(ordered[1] * 2, ordered[2])]
    assert sorted(verdict.p for verdict in found) == pytest.approx(expected)
    assert all("adjusted for 3 tests" in verdict.sentence for verdict in found)


def test_only_what_differs_is_listed():
    sides = [side("a", 1, lr="0.1", epochs="2", seed="1"), side("b", 1, lr="0.2", epochs="2", seed="2", new="x")]
    assert report.differences(sides) == [("lr", ["0.1", "0.2"]), ("new", ["–", "x"])]
    assert "Nothing differs but the seed." in report.markdown(
        [sides[0], sides[0]], verdicts.verdicts([sides[0]] * 2, 0.95, "test"), 0.95, "test", 2
    )
    named = report.disambiguate_names([one._replace(name="fast") for one in sides])
    assert [one.name for one in named] == ["fast lr=0.1 new=–", "fast lr=0.2 new=x"]
    assert [one.name for one in report.disambiguate_names(sides)] == ["a", "b"]
    eight = [side("a", 1, x=x, y=y, z=z, w="1") for x in "01" for y in "01" for z in "01"]  # of a sweep of three keys
    names = [one.name for one in report.disambiguate_names(eight)]
    assert len(set(names)) == 8 and names[:2] == ["a x=0 y=0 z=0", "a x=0 y=0 z=1"]


def test_the_table_holds_means_intervals_and_costs():
    sides = [side("a", 960, 970, 980), side("b", 990)]
    text = report.markdown(sides, verdicts.verdicts(sides, 0.95, "test"), 0.95, "test", 3)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    # Half the interval: t(2) = 4.3027, times .01 / sqrt(3).
    assert rows[2] == ["a", "3", "97.00 %", "94.52 % to 99.48 %", "30.0 of 1,000", "60", "1,000", "5,000"]
    assert rows[3][:5] == ["b", "1", "99.00 %", "–", "10.0 of 1,000"]
    assert "on the test examples: 3 different models of this store were scored on these test examples." in text


def test_an_interval_of_a_mean_stays_within_0_and_100_percent_and_two_seeds_have_none():
    # Of 2 seeds Student's would be 21.55 +- 12.7 * .35 and of 3, 99.3 +- 4.3027 * .7 / sqrt(3) = 97.6 to 101.0.
    assert report.mean_cells([0.212, 0.219], 0.95) == [
        "2",
        "21.55 %",
        "21.20 % and 21.90 %: 2 seeds, too few for an interval",
    ]
    assert report.mean_cells([math.nan, math.nan], 0.95) == ["2", "–", "–"]  # without validation digits
    assert report.mean_cells([0.986, 0.993, 1.0], 0.95) == ["3", "99.30 %", "97.56 % to 100.00 %"]
    assert report.mean_cells([0.0, 0.007, 0.014], 0.95) == ["3", "0.70 %", "0.00 % to 2.44 %"]


def test_seeds_of_as_many_epochs_as_the_published_log_are_looked_for(compose, monkeypatch):
    """Those of params.yaml were, and then refused."""
    asked: list[int] = []
    monkeypatch.setattr(compare_runs, "load_csv", lambda *_: [{"train_accuracy": 0.9}] * 3)
    monkeypatch.setattr(compare_runs, "fingerprint", lambda _, config, __: SimpleNamespace(group=config.train.epochs))
    monkeypatch.setattr(compare_runs.queries, "find_trained", lambda *_, group: asked.append(group) or [])
    with pytest.raises(UserError, match=r"the published log has 3 epochs: train baseline with train\.epochs=3"):
        compare_runs.compare_with_published(open_project(ROOT), compose("recipe=baseline"))
    assert asked == [3]


def test_two_seeds_do_not_say_where_one_more_would_lie():
    curves = [[0.9, 0.98], [0.91, 0.985], [0.905, 0.99]]
    bands = [significance.prediction_interval(epoch, 0.95) for epoch in zip(*curves, strict=True)]
    assert "in 2 of 2 epochs (n = 3 seeds of baseline;" in published_sentence([0.9, 0.99], curves, bands, 0.95)
    said = published_sentence([0.9, 0.99], curves[:2], [], 0.95)
    assert "99.00 % after 2 epochs, ours 98.00 % to 98.50 % (n = 2, too few seeds to say where one more" in said
    assert "ours 98.00 % (n = 1, too few" in published_sentence([0.9, 0.99], curves[:1], [], 0.95)


def test_runs_on_other_digits_are_not_comparable():
    digits, labels = np.arange(5), np.array([1, 2, 3, 4, 5])
    sure = np.ones(len(digits))
    given = {"a": Predictions(digits, labels, labels, sure), "b": Predictions(digits, labels, labels[::-1], sure)}
    assert [list(of) for of in verdicts.same_examples(given, "test")] == [list(digits), list(labels)]
    for other in (
        Predictions(digits + 1, labels, labels, sure),
        Predictions(digits[:4], labels[:4], labels[:4], sure[:4]),
    ):
        with pytest.raises(UserError, match="c and a predicted other test examples: not comparable"):
            verdicts.same_examples(given | {"c": other}, "test")


def test_telling_digits_are_those_that_tell_the_two_apart():
    a = Side("a", {}, np.array([[1, 1, 0, 0, 0], [1, 1, 0, 0, 1]], bool), [], 0, 0)
    b = Side("b", {}, np.array([[1, 0, 1, 0, 0], [1, 1, 1, 0, 0]], bool), [], 0, 0)
    found = {kind: list(places) for kind, places in report.most_discordant_examples(a, b).items()}
    assert found == {"a correct more often": [1, 4], "b correct more often": [2], "both wrong in most runs": [3]}
    one, other = a._replace(correct=a.correct[1:]), b._replace(correct=b.correct[1:])
    found = {kind: list(places) for kind, places in report.most_discordant_examples(one, other).items()}
    assert found == {"a correct more often": [4], "b correct more often": [2], "both wrong in most runs": [3]}
