"""What no optimizer, schedule or patience can do is refused in one line, before TensorFlow is loaded."""

from __future__ import annotations

import math

import pytest

from pipeline.base.errors import UserError
from pipeline.base.optimizers import check_optimizer
from pipeline.base.schema import Train
from pipeline.model.kept import best_figures, in_words, is_over, kept_epoch


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("optimizer.name=sgd", "optimizer.args.momentm=0.9"),
            "sgd takes no argument momentm: it takes momentum, nesterov, clipnorm",
        ),
        (
            ("optimizer.name=sgd", "optimizer.args.nesterov=true"),
            r"nesterov=true needs momentum: give optimizer\.args\.m",
        ),
        (("optimizer.name=adafactor",), "input should be 'adam', 'adamw'"),
        (("optimizer.name=adamw",), r"without decay is adam: give optimizer\.weight_decay"),
        (("optimizer.name=muon",), r"filter_groups=8: muon needs the whole kernel of a layer: give 1"),
        (
            ("optimizer.args.beta_1=0.8", "optimizer.sam_radius=0.1"),
            r"sam_radius=0\.1: give optimizer\.name=adam without arguments, or conv_muon",
        ),
        (("train.patience=2", "optimizer.schedule=cosine"), "the rate would stop near its peak: give constant"),
        (("train.patience=2", "data.val_size=0"), r"needs validation examples: give data\.val_size above 0"),
    ],
)
def test_what_cannot_work_is_refused(compose, words, said):
    with pytest.raises(UserError, match=rf"\A[^\n]*{said}[^\n]*\Z"):
        compose("recipe=baseline", *words)


def test_arguments_can_be_given_on_the_command_line_though_no_recipe_has_them(compose):
    one = compose("optimizer.name=sgd", "optimizer.args.momentum=0.9", "optimizer.args.nesterov=true")
    other = compose("optimizer.name=sgd", "optimizer.args={momentum: 0.9, nesterov: true}")
    assert one == other and one.optimizer.args == {"momentum": 0.9, "nesterov": True}
    with pytest.raises(UserError, match=r"optimizer\.arg\.momentum is no key"):
        compose("optimizer.arg.momentum=0.9")


@pytest.mark.parametrize(
    ("name", "args", "groups", "said"),
    [
        ("sgd", {"use_ema": True}, 1, "args.use_ema: averaged weights"),
        ("sgd", {"learning_rate": 0.1}, 1, "give optimizer.learning_rate"),
        ("muon", {"adam_weight_decay": 0.1}, 1, "give optimizer.weight_decay"),
        ("sgd", {"loss_scale_factor": 2}, 1, "leave it out"),
        ("sgd", {"gradient_accumulation_steps": 2}, 1, "give a larger optimizer.batch_size"),
        ("sgd", {"momentum": "0.9"}, 1, "momentum=0.9: expected a number from 0 to below 1"),
        ("sgd", {"momentum": 1}, 1, "momentum=1: expected a number from 0 to below 1"),
        ("sgd", {"nesterov": 1}, 1, "nesterov=1: expected true or false"),
        ("adam", {"epsilon": True}, 1, "epsilon=True: expected a number"),
        ("adam", {"clipnorm": 0}, 1, "clipnorm=0: expected a number above 0"),
        ("muon", {"ns_steps": 2.5}, 1, "ns_steps=2.5: expected a whole number above 0"),
        ("muon", {"exclude_layers": "logits"}, 1, "expected a list of names of layers"),
        ("adam", {"clipnorm": 1, "clipvalue": 1}, 1, "give one of clipnorm and clipvalue"),
        ("conv_muon", {"clipnorm": 1.0}, 1, "takes no argument clipnorm: it takes adam_lr_ratio, momentum, ns_steps"),
        ("conv_muon", {"adam_lr_ratio": -1}, 1, "adam_lr_ratio=-1: expected a number above 0"),
        ("conv_muon", {}, 2, "conv_muon needs the whole kernel"),
        ("lamb", {}, 2, "lamb needs the whole kernel"),
        ("adam", {"global_clipnorm": 1}, 2, "global_clipnorm needs the whole kernel"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(name, args, groups, said):
    with pytest.raises(ValueError, match=f"^optimizer\\..*{said}"):
        check_optimizer(name, args, 0.0, groups)


def test_arguments_that_fit_are_not_refused():
    check_optimizer("rmsprop", {"rho": 0, "momentum": 0.5, "centered": True, "clipvalue": 1}, 0.1, 2)
    check_optimizer("muon", {"rms_rate": None, "exclude_layers": ["logits"], "ns_steps": 3, "momentum": 0.9}, 0.0, 1)


def patient(monitor: str = "val_accuracy") -> Train:
    return Train(epochs=9, patience=2, monitor=monitor)


@pytest.mark.parametrize(
    ("monitor", "values", "kept", "over"),
    [
        ("val_accuracy", [0.5], 1, False),
        ("val_accuracy", [0.5, 0.75, 0.625], 2, False),
        ("val_accuracy", [0.5, 0.75, 0.625, 0.75], 2, True),  # the same again is no improvement
        ("val_accuracy", [0.5, 0.75, 0.625, 0.875], 4, False),
        ("val_accuracy", [math.nan, math.nan, 0.25], 3, False),
        ("val_accuracy", [math.nan, math.nan, math.nan], 1, True),
        ("val_loss", [0.5, 0.25, 0.75, 1.0], 2, True),
        ("val_error", [0.5, 0.75, 0.125], 3, False),
        ("val_macro_f1", [0.5, 0.75, 0.25], 2, False),
    ],
)
def test_the_best_epoch_is_kept_and_patience_counts_from_it(monitor, values, kept, over):
    history = [{monitor: value} for value in values]
    assert (kept_epoch(patient(monitor), history), is_over(patient(monitor), history)) == (kept, over)


def test_without_patience_the_last_epoch_is_kept_and_nothing_is_said():
    history = [{"val_accuracy": 0.5}, {"val_accuracy": 0.25}]
    train = Train(epochs=2)
    assert (kept_epoch(train, history), is_over(train, history)) == (2, False)
    assert in_words(train, history) == "" and best_figures(train, history) == {}
    assert not is_over(patient(), []), "of a training that has not begun"


def test_the_kept_epoch_is_reported_as_what_it_is():
    history = [{"epoch": 1 + i, "val_accuracy": a, "train_loss": 1 - a} for i, a in enumerate([0.5, 0.75, 0.25])]
    assert in_words(patient(), history) == "epoch 2 of 3, the best by val_accuracy on the validation examples"
    assert best_figures(patient(), history) == {"best_epoch": 2, "best_val_accuracy": 0.75, "best_train_loss": 0.25}
