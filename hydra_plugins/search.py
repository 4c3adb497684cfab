"""The sweeper of conf/sweep/search.yaml: Optuna proposes values, Hydra's launcher runs them.

Hydra finds sweepers in a folder of this name only, and imports it at every start: nothing slow is imported above.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper


class Search(Sweeper):
    """Maximise what a job returns, over the keys that vary.

    The sampler, TPE, is seeded: the same command proposes the same values again, as long as it gets the same results.
    So a search that was killed is started anew, and its finished trials are answered from MLflow.
    """

    def __init__(self, n_trials: int, n_jobs: int, seed: int, params: Mapping[str, str]) -> None:
        self.n_trials, self.n_jobs, self.seed = n_trials, n_jobs, seed  # n_jobs trials are proposed at a time
        self.params = params

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run n_trials jobs, and raise what the first failed one did in the end, as Hydra's own sweeper does.

        The study is kept in multirun/optuna.db, under the id of the parent run.
        """
        import optuna

        from pipeline.experiments.jobs import by_key

        given = by_key([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        space = {key: _distribution(override) for key, override in given.items() if override.is_sweep_override()}
        fixed = [f"{key}={given[key].get_value_element_as_str()}" for key in given if key not in space]
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        folder, name = Path(self.config.hydra.sweep.dir).parent, os.environ["SWEEP_PARENT"]
        folder.mkdir(parents=True, exist_ok=True)
        storage = f"sqlite:///{folder / 'optuna.db'}"  # a file of its own: MLflow has tables of the same names
        with suppress(KeyError):
            optuna.delete_study(study_name=name, storage=storage)
        sampler = optuna.samplers.TPESampler(seed=self.seed)
        study = optuna.create_study(storage=storage, sampler=sampler, study_name=name, direction="maximize")
        failed: list[JobReturn] = []
        for done in range(0, self.n_trials, self.n_jobs):
            if failed and self.config.sweep.fail_fast:
                break
            trials = [study.ask(space) for _ in range(min(self.n_jobs, self.n_trials - done))]
            jobs = [[*(f"{key}={value}" for key, value in trial.params.items()), *fixed] for trial in trials]
            for trial, result in zip(trials, self.launcher.launch(jobs, initial_job_idx=done), strict=True):
                has_ended = result.status == JobStatus.COMPLETED
                failed += [] if has_ended else [result]
                value = result.return_value if has_ended else math.nan
                lacks = math.isnan(value)
                study.tell(trial, None if lacks else value, state=optuna.trial.TrialState.FAIL if lacks else None)
        for result in failed:
            _ = result.return_value  # raises


def _distribution(override: Override) -> Any:  # optuna's BaseDistribution
    """Return what Optuna draws from: numbers of an interval, on a logarithmic scale if it is tagged log; else one of
    the values."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not override.is_interval_sweep():
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    value = override.value()
    assert isinstance(value, IntervalSweep)
    whole = isinstance(value.start, int) and isinstance(value.end, int)
    return (IntDistribution if whole else FloatDistribution)(value.start, value.end, log="log" in value.tags)
