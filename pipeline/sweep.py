"""A sweep: one parent run in MLflow, a child for every combination of values, and a ranking renewed after each child.

Hydra makes the combinations and launches them. What was trained is known by content (configuration, data and code): the
same command again trains what is missing. Children are ranked by validation accuracy; the test examples are not read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from filelock import FileLock
from hydra.experimental.callback import Callback

from pipeline import data
from pipeline.command import Folders, job_folder, jobs_at_once, one_line, overrides
from pipeline.config import ROOT, Config, PipelineError, compose, refusing, shortened
from pipeline.console import quiet_import
from pipeline.files import load_json, replacing, save_csv
from pipeline.isolation import READER_GONE, reader_gone
from pipeline.record import left_unfinished, lives
from pipeline.surroundings import COMPUTE_VARIABLES, DECIDES_NOTHING, Identity, depends_on_length, identity, origin
from pipeline.tables import markdown_table, percent, plain

if TYPE_CHECKING:
    from pipeline.statistics import Mean
    from pipeline.training import Shared, Split

# Environment variables, of all processes of a sweep.
PARENT, KEYS, EPOCHS, FOLDER = "SWEEP_PARENT", "SWEEP_KEYS", "SWEEP_EPOCHS", "SWEEP_FOLDER"
# What jobs are told, wherever they run; passwords and tokens stay out of what is sent and written on the way.
TOLD = re.compile(rf"SWEEP_|MLFLOW_(?!.*(PASSWORD|TOKEN|SECRET|KEY|PASSPHRASE))|({COMPUTE_VARIABLES.pattern})$")
LOCKS = ROOT / "multirun" / ".locks"
SHARED = ROOT / "multirun" / ".shared"
MOST_JOBS = 1_000  # each is composed before the first one runs, which takes a minute or two
CONFIDENCE = 0.95
LOOK_AGAIN = 5.0  # seconds between looks at a job that another machine trains
SPARE = 4  # the ranking is renewed again after so many times what it took: it grows with the sweep


class Child(NamedTuple):
    """A line of the ranking. Accuracies are shares of the last epoch, NaN where there is none."""

    name: str
    values: dict[str, str]  # by swept key, as they were given
    status: str  # MLflow's: FINISHED, RUNNING, FAILED or KILLED
    val_accuracy: float
    train_accuracy: float
    seconds: float  # in training
    num_params: int
    val_examples: int
    group: str  # runs of one group differ in their seed alone
    run_id: str


class Opening(Callback):
    """What Hydra calls before the first job, and in each: it travels there with what the jobs are to know."""

    def __init__(self) -> None:
        self.variables: dict[str, str] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        os.chdir(ROOT)  # a cluster's processes begin in the folder of its daemons, and Hydra's folders are relative

    def on_job_start(self, config: Any, **_: Any) -> None:
        os.environ.update(self.variables)  # a cluster's processes inherit the environment of its daemons

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        try:
            open_sweep(config)
            self.variables = {key: value for key, value in os.environ.items() if TOLD.match(key)}
        except Exception as error:  # Hydra would warn of it, and go on
            if message := one_line(error):
                sys.exit(f"error: {message}")
            traceback.print_exc()
            sys.exit(1)


def open_sweep(config: Any) -> None:
    """Refuse what cannot be swept, before the first job; open the parent run, or that of an earlier try.

    `config` is Hydra's, a DictConfig with Hydra's own section.
    """
    words = list(config.hydra.overrides.task)
    preset = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    with refusing(" ".join(words)):
        keys, jobs = _search(preset, words) if "optuna" in config.hydra.sweeper._target_ else _grid(preset + words)
    if idle := [key for key in keys if key.partition(".")[0] in DECIDES_NOTHING]:
        raise PipelineError(f"{idle[0]} changes nothing in training, each value trains the same: leave it out")
    data_files = [data.PROCESSED / f"{name}.npz" for name in ("train", "val")]
    planned = []
    for job in jobs:
        with _named_in_errors(job, keys):
            planned.append(compose(*job, verb="train"))
    split = load_json(data.PROCESSED / "split.json")
    for job, made in zip(jobs, planned, strict=True):
        with _named_in_errors(job, keys):
            data.check_split(split, made.data, data.PROCESSED)
    contents = [identity(job, data_files).content_sha256 for job in planned]
    searched = str(config.hydra.sweeper) if "optuna" in config.hydra.sweeper._target_ else ""
    digest = hashlib.sha256("".join([*sorted(contents), searched]).encode()).hexdigest()

    with quiet_import():
        from pipeline import tracking

    name = " ".join(["sweep", *words])
    hydra_words = [word for word in config.hydra.overrides.hydra if not word.startswith("hydra.mode=")]
    command = shlex.join(["python", "-m", "pipeline.train", "-m", *hydra_words, *words])
    parent, again = tracking.open_sweep(planned[0].data.name, name, command, digest, keys)
    done = 0 if searched else sum(tracking.finished(planned[0].data.name, content) is not None for content in contents)
    count = f"{config.hydra.sweeper.n_trials} trials" if searched else f"{len(jobs)} jobs"
    found = f", {done} found finished" if done else ""
    print(f"{name}: {count}{found}; MLflow run {parent}{', begun before' if again else ''}", flush=True)
    os.environ[PARENT], os.environ[KEYS] = parent, " ".join(keys)
    epochs = sorted({job.train.epochs for job in planned})
    os.environ[EPOCHS] = " ".join(map(str, epochs))
    os.environ[FOLDER] = str(Path(config.hydra.sweep.dir).absolute())
    if len(epochs) > 1 and any(map(depends_on_length, planned)):
        print("schedule or augmentation depend on the number of epochs: each number is trained by itself", flush=True)


@contextmanager
def _named_in_errors(job: Sequence[str], keys: Sequence[str]) -> Iterator[None]:
    """Name the job of a sweep over `keys` in front of what is wrong with it."""
    try:
        yield
    except Exception as error:
        message = one_line(error)
        if message is None or not keys:
            raise
        raise PipelineError(f"{_named(_swept(job, keys))}: {message}") from error


def _swept(words: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
    """The values that key=value words give to `keys`."""
    values = dict(word.split("=", 1) for word in words)
    return {key: values[key] for key in keys if key in values}


def _named(values: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items())


def _grid(words: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The keys that vary, and the words of every job, as Hydra will make them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(list(words))
    count = math.prod(map(_count, given))
    if not count <= MOST_JOBS:  # nor where it is NaN
        raise PipelineError(f"{shortened(' '.join(words))}: {count:.10g} jobs: give values for at most {MOST_JOBS:,}")
    [jobs] = BasicSweeper.split_arguments(given, None)
    if not jobs:
        raise PipelineError(f"{' '.join(words)} is no job at all: give each key at least one value")
    last = {override.get_key_element(): override for override in given}
    return [key for key, override in last.items() if override.is_sweep_override()], jobs


def _count(override: Any) -> float:
    """How many values a word gives its key, without making them."""
    from hydra.core.override_parser.types import ChoiceSweep, RangeSweep

    swept = override.value()
    if isinstance(swept, RangeSweep):
        return max(0.0, (swept.stop - swept.start) / swept.step)
    return len(swept.list) if isinstance(swept, ChoiceSweep) else 1


def _search(preset: Sequence[str], words: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The keys that are searched, and the words that all trials share, as the only job known before."""
    keys, fixed = ([word.partition("=")[0] for word in of] for of in (preset, words))
    return [key for key in keys if key not in fixed], [list(words)]


class Job(NamedTuple):
    """This process's part in a sweep."""

    parent: str
    values: dict[str, str]  # by swept key, as Hydra gives them

    @property
    def name(self) -> str:
        return _named(self.values) or "all the same"

    def run(self, config: Config, examples: Split, identity: Identity, outputs: Folders) -> float:
        """Train, or answer from the store what was trained already: the validation accuracy."""
        from pipeline import tracking, training

        LOCKS.mkdir(parents=True, exist_ok=True)
        try:
            # Whoever of this repository holds the lock is training just this; whoever was killed holds none.
            with FileLock(LOCKS / f"{identity.content_sha256}.lock"):
                if run := self._found(config, identity):
                    tracking.join_sweep(self.parent, run, self.values)
                    print(f"{self.name}: found finished, MLflow run {run.info.run_id}", flush=True)
                    return run.data.metrics.get("val_accuracy", math.nan)
                tags = tracking.child_tags(self.parent, self.values)
                bar = jobs_at_once() == 1
                shared = None if depends_on_length(config) else self._shared(config, identity)
                trained = training.train_tracked(config, examples, identity, outputs, self.name, tags, bar, shared)
                return trained.history[-1].val_accuracy
        finally:
            with while_the_tracker_answers():
                renew(self.parent, job_folder().parent, in_its_time=True)

    def _found(self, config: Config, identity: Identity) -> Any:  # MLflow's Run
        """A finished run of just this, or None, also where MLflow does not answer."""
        from pipeline import sending, tracking

        with while_the_tracker_answers():
            sending.send_waiting()  # what is looked for may be among it
            content, waited = identity.content_sha256, False
            while True:
                run = tracking.finished(config.data.name, content)
                left = left_unfinished(content, self.name, origin(config, identity))
                others = tracking.unfinished_children(self.parent, content, left)
                dead = [o for o in others if o.info.status != "RUNNING" or not lives(o.data.tags.get("process"))]
                if run or others == dead:
                    break
                if not waited:
                    print(f"{self.name}: another machine trains just this: waiting for it", flush=True)
                waited = True
                time.sleep(LOOK_AGAIN)
            if run and left:  # another command has trained it since
                shutil.rmtree(left)
                left = None
            if not left and tracking.discard(dead) and not run:
                print(f"{self.name}: left unfinished by an earlier try, trained again", flush=True)
            return run
        return None

    def _shared(self, config: Config, identity: Identity) -> Shared | None:
        """What this job shares with those that differ from it in the number of epochs alone."""
        from pipeline.training import Shared

        epochs = [int(number) for number in os.environ[EPOCHS].split()]
        folder = SHARED / self.parent / origin(config, identity)["configuration"][:16]
        return Shared(folder, epochs) if len(epochs) > 1 else None


@contextmanager
def while_the_tracker_answers() -> Iterator[None]:
    """Leave the block where MLflow refuses, with a word: training does not wait for it."""
    try:
        yield
    except PipelineError as error:
        print(f"{error}: the sweep goes on", flush=True)


def job() -> Job | None:
    """The job of a sweep that this is, or None."""
    if PARENT not in os.environ:
        return None
    return Job(os.environ[PARENT], _swept(overrides(), os.environ[KEYS].split()))


@contextmanager
def reported() -> Iterator[None]:
    """Close the sweep that the block was, if it was one: print its ranking, and fail where a job failed."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except SystemExit as ended:
        status = "FINISHED" if not ended.code else "KILLED" if ended.code in ("interrupted", READER_GONE) else "FAILED"
        raise
    finally:
        if PARENT in os.environ:
            try:
                _close(os.environ[PARENT], status)
            except BrokenPipeError:
                sys.exit(reader_gone())
            except PipelineError as error:  # MLflow went away
                sys.exit(f"error: {error}: the same command again completes the ranking")


def _close(parent: str, status: str) -> None:
    with quiet_import():  # where the jobs ran elsewhere, this is the first
        from pipeline import sending, tracking

    if status != "KILLED":
        shutil.rmtree(SHARED / parent, ignore_errors=True)
    if left := sending.send_waiting()[1]:
        sys.exit(f"error: {left[0]}: the same command again completes the ranking")
    children, text = renew(parent, Path(os.environ[FOLDER]))
    print(text)
    failed = [child.name for child in children if child.status != "FINISHED"]
    tracking.log_sweep(parent, [], {}, "FAILED" if failed and status == "FINISHED" else status)
    if failed and status != "KILLED":
        sys.exit(
            f"error: {len(failed)} of {len(children)} jobs did not finish ({'; '.join(failed)}): the same command "
            "again trains them and no other"
        )


def renew(parent: str, folder: Path, in_its_time: bool = False) -> tuple[list[Child], str]:
    """Write the ranking and its picture to `folder`, and log them to the parent run: the ranking, and as text. With
    `in_its_time` not soon after the last time, when both are empty, and without what takes reading every child."""
    from pipeline import plots, tracking

    LOCKS.mkdir(parents=True, exist_ok=True)
    with FileLock(LOCKS / f"{parent}.lock"):
        begin, next_time = time.time(), folder / ".next"
        if in_its_time and next_time.is_file() and begin < next_time.stat().st_mtime:
            return [], ""
        runs = tracking.of_sweep(parent)
        children = ranked(runs)
        text = markdown(children, None if in_its_time else _expected(children, runs))
        columns: dict[str, list[Any]] = {"rank": list(range(1, len(children) + 1))}
        columns |= {key: [child.values.get(key, "") for child in children] for key in os.environ[KEYS].split()}
        columns |= {
            field: [getattr(child, field) for child in children] for field in Child._fields if field != "values"
        }
        save_csv(folder / "ranking.csv", columns)
        with replacing(folder / "ranking.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
        curves = {run.info.run_id: tracking.curve(run, "val_accuracy") for run in runs}
        plots.save_figure(folder / "sweep.png", _draw(children, curves))
        best = children[0] if children else None
        tags = {"best": best.name, "best_run": best.run_id} if best and best.status == "FINISHED" else {}
        tags["mlflow.note.content"] = text[:5_000]  # what the run's page opens with; MLflow takes so much
        tracking.log_sweep(parent, [folder / name for name in ("ranking.csv", "ranking.md", "sweep.png")], tags)
        next_time.touch()
        end = time.time()
        os.utime(next_time, (end, end + SPARE * (end - begin)))
    return children, text


def ranked(runs: Sequence[Any]) -> list[Child]:
    """MLflow's runs as children: the finished ones first, by validation accuracy, the smaller network at a tie.

    What two machines have trained both counts once.
    """
    from pipeline import tracking

    children: dict[str, Child] = {}  # by content
    for run in sorted(runs, key=lambda run: run.info.status == "FINISHED"):
        parameters, figures, tags = run.data.params, run.data.metrics, run.data.tags
        values = swept_values(run, os.environ[KEYS].split())
        children[tags["content_sha256"]] = Child(
            plain(_named(values) or run.info.run_name),
            values,
            run.info.status,
            figures.get("val_accuracy", math.nan),
            figures.get("train_accuracy", math.nan),
            sum(tracking.curve(run, "epoch_seconds")),
            int(parameters.get("model.num_params", 0)),
            int(parameters.get("data.val_examples", 0)),
            tags["group"],
            run.info.run_id,
        )
    return sorted(
        children.values(),
        key=lambda child: (child.status != "FINISHED", -np.nan_to_num(child.val_accuracy), child.num_params),
    )


def swept_values(run: Any, keys: Sequence[str]) -> dict[str, str]:
    """What the sweep gave a run for its keys, as it was typed; for runs of earlier code, what their parameters say."""
    with suppress(ValueError, AttributeError):  # earlier code wrote none, or a sentence
        return {key: str(value) for key, value in json.loads(run.data.tags.get("swept", "")).items()}
    known = run.data.params | {"recipe": run.data.tags.get("recipe", "")}
    return {key: known[key] for key in keys} if known.keys() >= set(keys) else {}


def by_group(children: Sequence[Child]) -> dict[str, list[Child]]:
    """The finished children that differ in their seed alone, under what they have in common."""
    groups = defaultdict(list)
    for child in children:
        if child.status == "FINISHED":
            common = [f"{key}={value}" for key, value in child.values.items() if key != "seed"]
            groups[" ".join([*common, f"group {child.group}"])].append(child)
    return groups


def _expected(children: Sequence[Child], runs: Sequence[Any]) -> Mean | None:
    """The accuracy to expect of the best, by the validation predictions of all children that have them still."""
    from pipeline import comparison, statistics, tracking

    by_id, predictions = {run.info.run_id: run for run in runs}, {}
    with tempfile.TemporaryDirectory() as folder, suppress(PipelineError):
        for child in children:
            if child.status == "FINISHED" and child.val_examples > 1:
                with suppress(PipelineError):
                    file = tracking.artifact(by_id[child.run_id], "val_predictions.csv", Path(folder))
                    predictions[child.run_id] = comparison.read_predictions(file)
        if len(predictions) > 1:
            _, labels = comparison.same_examples(predictions, "validation")
            right = np.array([given.predictions == labels for given in predictions.values()])
            return statistics.best_of(right, CONFIDENCE)
    return None


def markdown(children: Sequence[Child], expected: Mean | None = None) -> str:
    """The ranking as a table, with a second one of means where there are several seeds. What is `expected` of the best,
    where it was chosen among several, takes all their predictions."""
    from pipeline.comparison import mean_cells
    from pipeline.metrics import wilson_interval

    rows = [["", "run", "validation", "training", "s in training", "parameters", "MLflow run"]]
    for rank, child in enumerate(children, 1):
        place = str(rank) if child.status == "FINISHED" else child.status.lower()
        accuracies = [percent(child.val_accuracy), percent(child.train_accuracy)]
        rows.append([place, child.name, *accuracies, f"{child.seconds:.1f}", f"{child.num_params:,}", child.run_id])
    text = f"{markdown_table(rows)}\n\nLast epoch, ranked by validation accuracy. The test examples were not read.\n"
    finished = [child for child in children if child.status == "FINISHED"]
    if expected:
        text += (
            f"The best of {len(finished)} was chosen on these {finished[0].val_examples:,} examples, which flatter it. "
            f"Chosen on examples drawn among them and scored on the others, the best has {percent(expected.mean)} "
            f"({100 * CONFIDENCE:g} % {percent(expected.low)} to {percent(expected.high)}; BBC-CV, by the predictions "
            f"of {expected.n}).\n"
        )
    elif len(finished) == 1 and (size := finished[0].val_examples):
        limits = wilson_interval(round(finished[0].val_accuracy * size), size, CONFIDENCE)
        text += (
            f"The choice of {size:,} examples alone leaves it between {percent(limits.low)} and {percent(limits.high)} "
            f"({100 * CONFIDENCE:g} %, Wilson); another seed moves it as well.\n"
        )
    groups = by_group(children)
    if max(map(len, groups.values()), default=0) < 2:
        return text
    rows = [["", "n seeds", "mean validation", f"{100 * CONFIDENCE:g} % of the mean (t)"]]
    for name, members in groups.items():
        rows.append([name, *mean_cells([child.val_accuracy for child in members], CONFIDENCE)])
    return f"{text}\n{markdown_table(rows)}\n"


def _draw(children: Sequence[Child], curves: Mapping[str, Sequence[float]]) -> Any:  # matplotlib's Figure
    """A heat map of two swept keys, seeds averaged; the curves of all children where it is not two."""
    from pipeline import plots

    keys = [key for key in os.environ[KEYS].split() if key != "seed"]
    finished = [child for child in children if child.status == "FINISHED"]
    if len(keys) != 2 or not finished:
        names = _labels([child.name for child in children], 60)
        drawn = zip(names, (curves[child.run_id] for child in children), strict=True)
        return plots.plot_curves(dict(drawn), "validation accuracy")
    values = [sorted({child.values.get(key, "") for child in children}, key=_number_first) for key in keys]
    grid = np.full([len(of) for of in values], np.nan)
    for place in np.ndindex(*grid.shape):
        here = [values[axis][index] for axis, index in enumerate(place)]
        found = [child.val_accuracy for child in finished if [child.values.get(key, "") for key in keys] == here]
        if found:
            grid[place] = np.mean(found)
    labels = [_labels(of, 24) for of in values]
    return plots.plot_heat_map(grid, keys, labels, "validation accuracy in %, last epoch")


def _labels(texts: Sequence[str], longest: int) -> list[str]:
    """Different texts that fit beside a picture: where one is long, all from shortly before the first difference on."""
    if max(map(len, texts), default=0) <= longest:
        return list(texts)
    alike = len(os.path.commonprefix(texts)) if len(texts) > 1 else 0  # noqa: RUF071 - no paths
    start = max(0, alike - longest // 2)
    rest = [text[start:] for text in texts]
    cut = [f"{'…' if start else ''}{text[:longest]}{'…' if text[longest:] else ''}" for text in rest]
    return cut if len(set(cut)) == len(cut) else [f"{number}: {text}" for number, text in enumerate(cut, 1)]


def _number_first(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return math.inf, text
