"""The optimizers, and the learning rate over the steps of a whole training."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.schema import Optimizer

Gradients = Sequence[tf.Tensor | None]  # None for a variable that the loss does not depend on: it stays as it is


def learning_rates(optimizer: Optimizer, steps: int) -> NDArray[np.float32]:
    """Return the rate of every step, float32 [steps].

    It is constant; or one cycle (Smith 2018, arXiv 1803.09820), linear; or rises linearly and falls to 0 as half a
    cosine (Loshchilov and Hutter 2017, arXiv 1608.03983).
    """
    if optimizer.schedule == "constant":
        return np.full(steps, optimizer.learning_rate, np.float32)
    position = (np.arange(steps) + 0.5) / steps  # 0..1, the middle of the step
    rise = position / max(optimizer.warmup, 1 / steps)
    fall = (1 - position) / (1 - optimizer.warmup)
    if optimizer.schedule == "cosine":
        rise = position / optimizer.warmup if optimizer.warmup else np.ones(steps)
        fall = (1 - np.cos(np.pi * np.minimum(fall, 1))) / 2
    return (optimizer.learning_rate * np.minimum(np.minimum(rise, fall), 1)).astype(np.float32)


class Adam:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980), Keras's defaults, one fused operation per variable.

    Weight decay is decoupled (Loshchilov and Hutter 2019, arXiv 1711.05101) and moves kernels alone.
    """

    def __init__(self, variables: Sequence[keras.Variable], weight_decay: float) -> None:
        self.variables = variables
        self.weight_decay = weight_decay
        self.first, self.second = ([tf.Variable(tf.zeros_like(one.value)) for one in variables] for _ in range(2))
        self.state = [*self.first, *self.second]  # the variables that the next step depends on, beside the model's
        self.directions = self.first  # where the gradients so far lead, for `climb`

    def apply(self, gradients: Gradients, rate: tf.Tensor, step: tf.Tensor) -> None:
        """Move the variables; `rate` is float32, `step` int32, counted from 0 over the whole training."""
        power = tf.cast(step + 1, tf.float32)
        beta1_power, beta2_power = 0.9**power, 0.999**power
        for moved, gradient, first, second in zip(self.variables, gradients, self.first, self.second, strict=True):
            if gradient is None:
                continue
            variable = moved.value
            if self.weight_decay and variable.shape.rank > 1:
                variable.assign(variable * (1.0 - rate * self.weight_decay))
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=first.handle,
                v=second.handle,
                beta1_power=beta1_power,
                beta2_power=beta2_power,
                lr=rate,
                beta1=0.9,
                beta2=0.999,
                epsilon=1e-7,
                grad=gradient,
            )
        for moved in self.variables:
            if moved.constraint is not None:
                moved.assign(moved.constraint(moved))


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of the polynomial below: 5 steps lead from 0.01..1 to 0.7..1.2
AT_ONCE = 5  # steps on a Gram matrix: its rounding grows twelvefold in each, from 1e-7 of float32


class ConvMuon:
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) for the kernels of convolutions; Adam moves
    everything else, at `adam_lr_ratio` times the rate.

    A kernel, read as a matrix [height width channels, filters], moves by its momentum made nearly orthogonal: every
    direction by the same amount. Keras's Muon does that to the kernels of dense layers, and leaves convolutions to
    AdamW. Weight decay is that of Adam above, each variable's at its own rate.
    """

    def __init__(
        self,
        variables: Sequence[keras.Variable],
        weight_decay: float,
        adam_lr_ratio: float = 1.0,
        momentum: float = 0.95,
        ns_steps: int = 5,
    ) -> None:
        self.is_kernel = [
            variable.name == "kernel" and len(variable.shape) == 4 and variable.shape[-1] > 1  # 1: of a depthwise one
            for variable in variables
        ]
        self.kernels = [one for one, is_kernel in zip(variables, self.is_kernel, strict=True) if is_kernel]
        self.momenta = [tf.Variable(tf.zeros_like(kernel.value)) for kernel in self.kernels]
        rest = [one for one, is_kernel in zip(variables, self.is_kernel, strict=True) if not is_kernel]
        self.adam = Adam(rest, weight_decay)
        self.state = [*self.momenta, *self.adam.state]
        of_kernels, of_rest = iter(self.momenta), iter(self.adam.first)
        self.directions = [next(of_kernels if is_kernel else of_rest) for is_kernel in self.is_kernel]
        self.weight_decay, self.adam_lr_ratio = weight_decay, adam_lr_ratio
        self.momentum, self.ns_steps = momentum, ns_steps

    def apply(self, gradients: Gradients, rate: tf.Tensor, step: tf.Tensor) -> None:
        """Move the variables as `Adam.apply` does."""
        pairs = list(zip(gradients, self.is_kernel, strict=True))
        self.adam.apply([one for one, is_kernel in pairs if not is_kernel], rate * self.adam_lr_ratio, step)
        of_kernels = [one for one, is_kernel in pairs if is_kernel]
        for kernel, gradient, momentum in zip(self.kernels, of_kernels, self.momenta, strict=True):
            if gradient is None:
                continue
            momentum.assign(self.momentum * momentum + gradient)
            ahead = tf.reshape(gradient + self.momentum * momentum, [-1, kernel.shape[-1]])  # Nesterov's
            moves = tf.reshape(nearly_orthogonal(ahead, self.ns_steps), kernel.shape)
            rows, columns = ahead.shape
            length = rate * max(1.0, columns / rows) ** 0.5
            kernel.assign(kernel.value * (1.0 - rate * self.weight_decay) - length * moves)
            if kernel.constraint is not None:
                kernel.assign(kernel.constraint(kernel))


def climb(variables: Sequence[tf.Variable], directions: Sequence[tf.Variable], radius: float) -> list[tf.Tensor]:
    """Move the variables by `radius`, a distance in the space of all, along `directions`; return where they were.

    Gradients that are taken there are those of a higher loss nearby, and lead to flat minima (momentum-SAM: Becker et
    al. 2024, arXiv 2401.12033). With ConvMuon the kernels of convolutions move most: their momenta are sums, and Adam's
    are means.
    """
    before = [variable.read_value() for variable in variables]
    length = radius / (tf.linalg.global_norm(directions) + 1e-12)
    for variable, direction in zip(variables, directions, strict=True):
        variable.assign_add(length * direction)
    return before


def nearly_orthogonal(matrix: tf.Tensor, steps: int) -> tf.Tensor:
    """Return a matrix with the singular vectors of `matrix`, float32 [R, C], and singular values near 1, by steps of a
    Newton-Schulz iteration: a x + b x^3 + c x^5 of every singular value x, which takes products of matrices alone.

    Steps together are one polynomial in the Gram matrix of the shorter side, times the matrix. So the longer side,
    which is most of the work, is met twice in AT_ONCE steps, or in each on a GPU, which may round products to 1e-3.
    """
    at_once = 1 if tf.config.list_physical_devices("GPU") else AT_ONCE
    a, b, c = NEWTON_SCHULZ
    x = matrix / (tf.norm(matrix) + 1e-7)  # no singular value above 1
    is_tall = matrix.shape[0] > matrix.shape[1]
    identity = tf.eye(min(matrix.shape))
    for first in range(0, steps, at_once):
        gram = tf.matmul(x, x, transpose_a=is_tall, transpose_b=not is_tall)
        product = identity
        for _ in range(first, min(first + at_once, steps)):
            factor = a * identity + b * gram + c * tf.matmul(gram, gram)
            product = tf.matmul(factor, product)
            gram = tf.matmul(tf.matmul(factor, gram), factor)
        x = tf.matmul(x, product) if is_tall else tf.matmul(product, x)
    return x


class KerasOptimizer:
    """One of Keras's optimizers, with its own arguments; it counts its steps itself.

    Weight decay means what it means for Adam above: the same formula, on kernels alone.
    """

    def __init__(self, variables: Sequence[keras.Variable], settings: Optimizer) -> None:
        self.variables = variables
        decay = {"weight_decay": settings.weight_decay or None}
        if settings.name == "muon":  # of what it leaves to AdamW
            decay["adam_weight_decay"] = decay["weight_decay"]
        kinds = {name.lower(): kind for name, kind in vars(keras.optimizers).items()}  # `get` does not know lamb (3.15)
        try:
            self.optimizer = kinds[settings.name](learning_rate=settings.learning_rate, **decay, **settings.args)
        except ValueError as error:  # of values: names and types are the schema's
            raise UserError(f"optimizer.args: {str(error).partition(chr(10))[0]}") from None
        self.optimizer.exclude_from_weight_decay([variable for variable in variables if len(variable.shape) < 2])
        self.optimizer.build(variables)
        self.state = self.optimizer.variables
        self.directions: list[tf.Variable] = []  # Keras has them under many names: the schema refuses sam_radius

    def apply(self, gradients: Gradients, rate: tf.Tensor, step: tf.Tensor) -> None:
        """Move the variables as `Adam.apply` does."""
        self.optimizer.learning_rate = rate
        pairs = zip(gradients, self.variables, strict=True)
        self.optimizer.apply_gradients([(gradient, variable) for gradient, variable in pairs if gradient is not None])


def make_optimizer(settings: Optimizer, variables: Sequence[keras.Variable]) -> Adam | ConvMuon | KerasOptimizer:
    """Return what moves the variables: our own Adam where it computes the same as the one that is asked for."""
    if settings.name == "conv_muon":
        return ConvMuon(variables, settings.weight_decay, **settings.args)
    if settings.name == "adam" and not settings.args:
        return Adam(variables, settings.weight_decay)
    return KerasOptimizer(variables, settings)
