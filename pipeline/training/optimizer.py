"""Adam, and its learning rate over the steps of a whole training."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipeline.base.schema import Optimizer


def learning_rates(optimizer: Optimizer, steps: int) -> NDArray[np.float32]:
    """Return the rate of every step, float32 [steps]: constant, or one cycle (Smith 2018, arXiv 1803.09820), linear."""
    if optimizer.schedule == "constant":
        return np.full(steps, optimizer.learning_rate, np.float32)
    position = (np.arange(steps) + 0.5) / steps  # 0..1, the middle of the step
    rise = position / max(optimizer.warmup, 1 / steps)
    fall = (1 - position) / (1 - optimizer.warmup)
    return (optimizer.learning_rate * np.minimum(np.minimum(rise, fall), 1)).astype(np.float32)


class Adam:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980), Keras's defaults, one fused operation per variable.

    Weight decay is decoupled (Loshchilov and Hutter 2019, arXiv 1711.05101) and moves kernels alone.
    """

    def __init__(self, variables: list[tf.Variable], weight_decay: float) -> None:
        self.variables = variables
        self.weight_decay = weight_decay
        self.first = [tf.Variable(tf.zeros_like(variable)) for variable in variables]
        self.second = [tf.Variable(tf.zeros_like(variable)) for variable in variables]

    def moments(self) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
        """Return the first and the second moments, in the order of the variables."""
        return [moment.numpy() for moment in self.first], [moment.numpy() for moment in self.second]

    def restore(self, first: list[NDArray[np.float32]], second: list[NDArray[np.float32]]) -> None:
        """Continue with what `moments` returned."""
        for moment, value in zip([*self.first, *self.second], [*first, *second], strict=True):
            moment.assign(value)

    def apply(self, gradients: list[tf.Tensor], rate: tf.Tensor, step: tf.Tensor) -> None:
        """Move the variables; `rate` is float32, `step` int32, counted from 0 over the whole training."""
        power = tf.cast(step + 1, tf.float32)
        for variable, gradient, first, second in zip(self.variables, gradients, self.first, self.second, strict=True):
            if self.weight_decay and variable.shape.rank > 1:
                variable.assign(variable * (1.0 - rate * self.weight_decay))
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=first.handle,
                v=second.handle,
                beta1_power=0.9**power,
                beta2_power=0.999**power,
                lr=rate,
                beta1=0.9,
                beta2=0.999,
                epsilon=1e-7,
                grad=gradient,
            )
