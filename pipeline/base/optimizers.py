"""The optimizers that a configuration can name, and their arguments, without importing Keras.

All but CONV_MUON are Keras's own: a test holds their table against the constructors. Adafactor (NaN in Keras 3.15) and
ScheduleFree (changes the weights when `fit` ends) are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

OptimizerName = Literal[
    "adam",
    "adamw",
    "adamax",
    "nadam",
    "sgd",
    "rmsprop",
    "adagrad",
    "adadelta",
    "ftrl",
    "lamb",
    "lion",
    "muon",
    "conv_muon",
]
ADAM = {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}
CLIPPING = {"clipnorm": None, "clipvalue": None, "global_clipnorm": None}
CONV_MUON = "conv_muon"
ARGUMENTS: dict[str, dict[str, Any]] = {  # with their defaults, whose types they have; None is that of a number
    "adam": ADAM | {"amsgrad": False},
    "adamw": ADAM | {"amsgrad": False},
    "adamax": ADAM,
    "nadam": ADAM,
    "sgd": {"momentum": 0.0, "nesterov": False},
    "rmsprop": {"rho": 0.9, "momentum": 0.0, "epsilon": 1e-7, "centered": False},
    "adagrad": {"initial_accumulator_value": 0.1, "epsilon": 1e-7},
    "adadelta": {"rho": 0.95, "epsilon": 1e-7},
    "ftrl": {
        "learning_rate_power": -0.5,
        "initial_accumulator_value": 0.1,
        "l1_regularization_strength": 0.0,
        "l2_regularization_strength": 0.0,
        "l2_shrinkage_regularization_strength": 0.0,
        "beta": 0.0,
    },
    "lamb": ADAM,
    "lion": {"beta_1": 0.9, "beta_2": 0.99},
    "muon": {
        "adam_beta_1": 0.9,
        "adam_beta_2": 0.999,
        "epsilon": 1e-7,
        "exclude_layers": [],
        "exclude_embeddings": True,
        "muon_a": 3.4445,
        "muon_b": -4.775,
        "muon_c": 2.0315,
        "adam_lr_ratio": 1.0,
        "momentum": 0.95,
        "ns_steps": 5,
        "nesterov": True,
        "rms_rate": 0.2,
    },
    CONV_MUON: {"adam_lr_ratio": 1.0, "momentum": 0.95, "ns_steps": 5},  # named as those of Keras's Muon
}
# Arguments that Keras takes and we do not, and what to do instead.
REFUSED = {
    "learning_rate": "give optimizer.learning_rate",
    "weight_decay": "give optimizer.weight_decay",
    "adam_weight_decay": "give optimizer.weight_decay",
    "gradient_accumulation_steps": "give a larger optimizer.batch_size",
    "loss_scale_factor": "the loss is not scaled here: leave it out",
    **dict.fromkeys(
        ("use_ema", "ema_momentum", "ema_overwrite_frequency"),
        "averaged weights would differ from those that are validated: leave it out",
    ),
    "name": "it would name nothing: leave it out",
}
FRACTIONS = ("beta_1", "beta_2", "adam_beta_1", "adam_beta_2", "momentum", "rho")  # from 0 to below 1
BY_VARIABLE = {"muon", CONV_MUON, "lamb", "clipnorm", "global_clipnorm"}  # a step looks at whole variables


def check_optimizer(
    name: str, args: Mapping[str, Any], weight_decay: float, filter_groups: int = 1, sam_radius: float = 0.0
) -> None:
    """Raise a ValueError, one line, where the optimizer of this name cannot train as these keys ask."""
    known = ARGUMENTS[name] | (CLIPPING if name != CONV_MUON else {})
    for key, value in args.items():
        if key in REFUSED:
            raise ValueError(f"optimizer.args.{key}: {REFUSED[key]}")
        if key not in known:
            raise ValueError(
                f"optimizer.args: {name} takes no argument {key}: it takes {', '.join(known) or 'none'}; "
                f"~optimizer.args.{key} leaves out what a recipe gives"
            )
        if wanted := _expected(key, known[key], value):
            raise ValueError(f"optimizer.args.{key}={value}: expected {wanted}")
    if len(clips := [key for key in CLIPPING if args.get(key) is not None]) > 1:
        raise ValueError(f"optimizer.args: give one of {' and '.join(clips)}")
    if args.get("nesterov") and name in ("sgd", "rmsprop") and not args.get("momentum"):
        raise ValueError("optimizer.args.nesterov=true needs momentum: give optimizer.args.momentum=0.9, say")
    if name == "adamw" and not weight_decay:
        raise ValueError("optimizer.name=adamw without decay is adam: give optimizer.weight_decay (Keras has 0.004)")
    if sam_radius and name != CONV_MUON and (name != "adam" or args):
        raise ValueError(
            f"optimizer.sam_radius={sam_radius:g}: give optimizer.name=adam without arguments, or conv_muon"
        )
    if filter_groups > 1 and (whole := BY_VARIABLE & {name, *clips}):
        raise ValueError(
            f"optimizer.filter_groups={filter_groups}: {min(whole)} needs the whole kernel of a layer: give 1"
        )


def _expected(key: str, default: Any, value: Any) -> str:
    """Return what is expected of an argument in words, or nothing where the value is that."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, list):
        texts = isinstance(value, list) and all(isinstance(text, str) for text in value)
        return "" if texts else "a list of names of layers"
    if key == "adam_lr_ratio":
        return "" if is_number and value > 0 else "a number above 0"
    if key in FRACTIONS:
        return "" if is_number and 0 <= value < 1 else "a number from 0 to below 1"
    if isinstance(default, int):
        return "" if isinstance(value, int) and is_number and value > 0 else "a whole number above 0"
    if key in CLIPPING:
        return "" if value is None or (is_number and value > 0) else "a number above 0"
    return "" if is_number or (key == "rms_rate" and value is None) else "a number"
