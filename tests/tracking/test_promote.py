"""By what a champion is chosen: the validation digits that both runs held out, and nothing else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline import promote
from pipeline.base.errors import UserError
from pipeline.reports import verdicts
from pipeline.reports.verdicts import Predictions
from pipeline.tracking import queries

LABELS = np.arange(1_000) % 10


def predicted(wrong: range, examples: np.ndarray = LABELS) -> Predictions:
    answers = LABELS.copy()
    answers[list(wrong)] += 1
    return Predictions(np.arange(len(examples)), examples, answers, np.ones(len(examples)))


def compare(both: dict[str, Predictions]) -> list[verdicts.Verdict]:
    return verdicts.compare_predictions(both, 0.95, "validation")


def test_the_better_one_on_the_validation_digits_is_shown_by_mcnemars_test():
    [verdict] = compare({"the champion": predicted(range(25)), "this run": predicted(range(100, 110))})
    assert verdict.shown and verdict.p == pytest.approx(0.0167, abs=1e-4)  # 25 against 10 discordant
    assert verdict.sentence.startswith("this run is better than the champion: +1.50 points (95 % +0.33 to +2.67)")
    assert "1,000 validation examples" in verdict.sentence
    [verdict] = compare({"the champion": predicted(range(25)), "this run": predicted(range(100, 115))})
    assert not verdict.shown and verdict.p == pytest.approx(0.154, abs=1e-3)


def test_runs_that_held_out_other_digits_are_not_compared():
    both = {"the champion": predicted(range(3)), "this run": predicted(range(3), LABELS[::-1])}
    with pytest.raises(UserError, match=r"^this run and the champion predicted other validation examples: not com"):
        compare(both)


def test_a_run_that_held_out_nothing_is_refused(tmp_path, monkeypatch):
    def run(**params: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id="abc"), data=SimpleNamespace(params=params))

    with pytest.raises(UserError, match=r"^abc held out no validation digits to compare by: train with a data\.v"):
        promote._held_out(run(**{"data.val_size": "0"}))
    (tmp_path / "val_predictions.csv").write_text("index,label,prediction\n3,7,7\n5,1,2\n")
    monkeypatch.setattr(queries, "artifact", lambda run, name, folder: Path(tmp_path / name))
    found = promote._held_out(run(**{"data.val_size": "2"}))
    assert [list(of) for of in found[:3]] == [[3, 5], [7, 1], [7, 2]]


def test_a_champion_that_cannot_be_compared_with_is_named_as_such(monkeypatch):
    """Its run is one that nobody typed."""
    from pipeline.tracking import registry

    def find_run(_: Any, run_id: str, __: Any) -> Any:
        params = {"data.val_size": "0"} if run_id == "old" else {}
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id), data=SimpleNamespace(params=params))

    champion = SimpleNamespace(version="4", run_id="old")
    monkeypatch.setattr(registry, "version_of", lambda *_: champion)
    monkeypatch.setattr(registry, "is_gone", lambda *_: False)
    monkeypatch.setattr(queries, "find_run", find_run)
    monkeypatch.setattr(queries, "artifact", lambda run, *_: Path("val_predictions.csv"))
    monkeypatch.setattr(queries, "recorded_model", lambda *_: None)
    monkeypatch.setattr(verdicts, "read_predictions", lambda _: predicted(range(1)))
    config = SimpleNamespace(run="new", data=SimpleNamespace(name="mnist"), evaluate=SimpleNamespace(confidence=0.95))
    message = r"\Athe champion, version 4 of mnist, cannot be compared with \(old held out .*\): take that alias off it"
    with pytest.raises(UserError, match=message):
        promote.promote(None, config)
    champion.run_id = "other split"
    labels = {"new": LABELS, "other split": LABELS[::-1]}
    monkeypatch.setattr(promote, "_held_out", lambda run: predicted(range(1), labels[run.info.run_id]))
    with pytest.raises(UserError, match=r"\(this run and the champion predicted other validation examples: not com"):
        promote.promote(None, config)


def test_the_champion_promoted_again_leaves_the_challenger_its_alias(monkeypatch, capsys):
    from pipeline.tracking import registry

    run = SimpleNamespace(info=SimpleNamespace(run_id="best"))
    monkeypatch.setattr(registry, "version_of", lambda *_: SimpleNamespace(version="4", run_id="best"))
    monkeypatch.setattr(registry, "is_gone", lambda *_: False)
    monkeypatch.setattr(registry, "register", lambda *_: "4")
    monkeypatch.setattr(registry, "point", lambda *_: pytest.fail("it points there already"))
    monkeypatch.setattr(queries, "find_run", lambda *_: run)
    monkeypatch.setattr(queries, "recorded_model", lambda *_: None)
    monkeypatch.setattr(promote, "_held_out", lambda _: predicted(range(1)))
    monkeypatch.setattr(promote, "_card", lambda *_: "")
    promote.promote(None, SimpleNamespace(run="best", data=SimpleNamespace(name="mnist")))
    assert capsys.readouterr().out == "models:/mnist@champion is version 4, run best: already\n"
