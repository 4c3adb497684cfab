"""Debugging helpers: whether a few examples were memorised, or the likely reason why not."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.training.loop import Epoch


def memorization_report(history: Sequence[Epoch], size: int) -> str:
    """Say whether all of `size` training examples were correct in the last epoch, or the likely reason why not."""
    losses = [epoch.train_loss for epoch in history]
    correct = round(history[-1].train_accuracy * size)
    if correct == size:
        since = next(e.epoch for e in history if all(later.train_accuracy == 1 for later in history[e.epoch - 1 :]))
        return f"memorised all {size} examples, since epoch {since}"
    course = f"loss {losses[0]:.3f} at first, {min(losses):.3f} at best, {losses[-1]:.3f} at last"
    progress = f"{correct} of {size} examples correct, {course}"
    if min(losses) > 0.95 * losses[0]:
        return f"{progress}: it does not fall: no gradient reaches the weights, or optimizer.learning_rate is far off"
    if losses[-1] > 1.5 * min(losses):
        return f"{progress}: it rises again: lower optimizer.learning_rate"
    return f"{progress}: it still falls: give more train.epochs, or the model is too small (model.filters)"
