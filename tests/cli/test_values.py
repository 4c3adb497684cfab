"""Values from anywhere, generated: words and edited files are taken, or refused in one line.

The generated ones go through a command's own entry point in one process, and some of them through whole commands.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import signal
import string
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import ROOT, run
from faults_report import record
from hypothesis import HealthCheck, Phase, configuration, given, settings
from hypothesis import strategies as st

from pipeline import command, config, files, sweep
from pipeline.command import entry_point
from pipeline.config import Config, to_dict

pytestmark = pytest.mark.faults

QUICK, MANY = 40, 2_000  # configurations in one process
REFUSED, TRAINED = 185, 15  # whole commands
SECONDS = 20  # until it counts as a hang; the longest takes a second on an idle machine
SECRET = "a-secret-of-the-environment"

STORAGE = tempfile.TemporaryDirectory()  # what Hypothesis would keep in the working directory
configuration.set_hypothesis_home_dir(STORAGE.name)


class Hang(BaseException):  # no Exception: what catches those must not take it for one
    pass


class Edit(NamedTuple):
    """A file of the configuration with other content."""

    file: str
    content: bytes


class Try(NamedTuple):
    words: list[str]
    edit: Edit | None


def generated(tries: int) -> Callable[[Any], Any]:
    """The same ones every time; failures are counted, not looked into."""
    return settings(
        max_examples=tries,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


PLAIN = {  # by key: values near the edges of what is accepted
    "seed": ["0", "7", "2147483647", "2147483648", "-1"],
    "dataset": ["mnist", "nosuch"],
    "name": ["mine", "../../x", "a/b", "-", ".", "..", "x" * 64, "x" * 65, "'a b'", "ä", "<b>x</b>", "x;y", "$(id)"],
    "recipes": ["[baseline]", "[]", "[../x]", "[[a]]", "baseline"],
    "train.epochs": ["1", "15", "0", "10000", "10001"],
    "train.examples": ["null", "1", "0", "2147483648"],
    "train.profile_steps": ["0", "1", "-1", "1001"],
    "evaluate.confidence": ["0.5", "0.95", "1", "0.49"],
    "evaluate.calibration_bins": ["2", "1", "1000", "1001"],
    "evaluate.views": ["1", "5", "3"],
    "data.image_shape": ["[28,28]", "[1,1]", "[28]", "[0,28]", "[[28],28]", "[1001,28]", "[28,28,1]"],
    "data.classes": ["[a,b]", "[]", "[a]", "[a,a]", "['',b]", f"[a,{41 * 'b'}]", "10", "[[a],b]", "[1,2]"],
    "data.published": ["true", "false", "maybe"],
    "data.val_size": ["0", "5000", "-1"],
    "data.split_seed": ["0", "-1"],
    "data.fraction": ["1", "0", "1e-300", "1.0001"],
    "data.name": ["mnist", "../x", "fashion-mnist"],
    "data.files.train_images": ["x", "../x", "/etc/passwd"],
    "data.files": ["{}", "{train_images: x}", "null"],
    "data.sources": ["[]", "[a,b]", "[[a]]", "[1]"],
    "data.sha256.train_images": ["0" * 64, "x"],
    "model.filters": ["1", "2", "64", "0", "10000", "10001"],
    "model.convolutions": [
        "[]",
        "[{multiple: 1, kernel_size: 3, strides: 1, padding: same, pool: 1}]",
        "[{multiple: 1, kernel_size: 29, strides: 1, padding: valid, pool: 1}]",
        "[{multiple: 0, kernel_size: 3, strides: 0, padding: full, pool: 0}]",
        "[{multiple: 1}]",
        "[{}]",
        "[[]]",
        "[null]",
        "[1]",
        "{}",
    ],
    "model.convolutions.0.pool": ["1", "2", "27", "0"],
    "model.convolutions.9.pool": ["1"],
    "model.batch_norm": ["true", "false", "maybe", "1"],
    "model.pooling": ["flatten", "average", "max"],
    "model.units": [
        "[]",
        "[1]",
        "[64,64]",
        "[0]",
        "[100000]",
        "[1000000]",
        "[[1]]",
        "[null]",
        "[a]",
        "[1.5]",
        "{a: 1}",
    ],
    "model.pixel_scale": ["1", "0.004", "0", "5e-324", "1.01"],
    "model.precision": ["float32", "mixed_bfloat16", "float16"],
    "optimizer.batch_size": ["1", "32", "65536", "65537", "0"],
    "optimizer.batch_shards": ["1", "2", "16", "17"],
    "optimizer.row_strips": ["1", "2", "26", "27"],
    "optimizer.learning_rate": ["0.001", "10", "10.1", "0", "5e-324"],
    "optimizer.schedule": ["constant", "one_cycle", "cosine"],
    "optimizer.warmup": ["0", "0.25", "1"],
    "optimizer.weight_decay": ["0", "0.02", "1"],
    "optimizer.label_smoothing": ["0", "0.1", "1"],
    "augment.rotation": ["0", "10", "180"],
    "augment.scale": ["0", "0.1", "1"],
    "augment.stretch": ["0", "0.1", "1"],
    "augment.shear": ["0", "0.1", "1"],
    "augment.shift": ["0", "2", "27.9", "28"],
    "augment.full_until": ["0", "0.6", "1"],
    "augment.last": ["0", "1", "1.1"],
    "recipe": ["baseline", "accurate", "fast", "debug/overfit", "nosuch", "../../params", "[baseline,fast]", "{a: 1}"],
    "data": ["mnist", "nosuch", "/etc/passwd", "null"],
    "sweep": ["seeds", "epochs_filters", "search", "null", "nosuch"],
}
# fmt: off
STRANGE_KEYS = [
    "run", "a", "hydra", "hydra.run.dir", "hydra.mode", "hydra.searchpath", "hydra/launcher", "hydra.launcher.n_jobs",
    "hydra.launcher._target_", "hydra.callbacks.sweep._target_", "hydra.job.env_set.HOME", "hydra.sweeper.params",
    "hydra/sweeper", "_target_", "+seed", "++seed", "~seed", "~recipe", "+x", "seed@x", "recipe@model", "seed.x",
    "seed.", "model.units.0", "model.units[0]", "model", "train", "optimizer", "augment", "train.epoch", "SEED",
    "seed:", "=seed", ".seed", ".", ":", "@", "/", "?", "-z", "--", "--cfg", "--config-dir", "--config-name",
    "--experimental-rerun", "-m", "--multirun", "--help", "--info", "--version", "--run",
]
HOSTILE = [
    "nan", ".nan", "NaN", "inf", "-inf", ".inf", "-0.0", "1e309", "1e-400", "1e5", "0x10", "1_000", "010", "1:30",
    "0b11", "-1", "true", "no", "null", "~", "???", "{}", "[]", "{a:1}", "[[1]]", "", " ", "''", '""', "'", '"', "\\",
    "=", "==", "a=b", ",", "1,2", "a,,b", "[1,2", "1]", "{a", "#", "!x", "&a", "*a", "9" * 30, "9" * 400,
    "-" + "9" * 400, "9" * 4_500, "0x" + "f" * 4_000, "0x" + "f" * 3_900, "0." + "0" * 500 + "1", "a" * 3_900,
    "[" * 8, "[" * 500, "[" * 100_000, "{" * 100_000, "(" * 100_000, "[" * 300 + "]" * 300, "[1]," * 900,
    "${oc.env:SECRET}", "${oc.env:HOME}", "${seed}", "${oc.env:NOSUCH,x}", "${train.epochs}", "${model}", "${nosuch}",
    "${", "$", "${}", "${${seed}}", "${oc.decode:1}", "${now:%Y}", "${oc.select:seed}", "${oc.create:{a:1}}",
    "${hydra:runtime.cwd}", "${run_folder:x}", "\\${seed}", "$HOME", "`id`", "range(0,3)", "range(0,1e12)",
    "range(0,1,0)", "range(0,nan)", "choice(1,2)", "shuffle(range(0,1000000000))", "interval(0,1)", "glob(*)",
    "int(1)", "int(x)", "str(1)", "float(nan)", "tag(a,choice(1))", "sort(3,1)", "f()", "ä", "٣", "１", "\u202e",
    "\u200b", "\ud800", "\udcff", "\x00", "\x1b[31m", "\n", "\r", "\t", "a\nb", "\ufeff", "😀", "../../x",
    "/etc/passwd", "~/x", "C:\\x", "%s%n", "{0}", "<script>", "' OR 1=1 --", "!!python/object:os.system",
]
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
CONTENTS = [  # instead of a file, or after its own content
    b"", b"\n", b"~", b"null", b"1", b"x", b"- a\n- b\n", b"[]", b"{}", b"seed: [1}\n", b"seed:\n\t- 1\n",
    b"\tseed: 1\n", b"seed: 1\nseed: 2\n", b"seed: ${seed}\n", b"seed: ${train.epochs}\ntrain: {epochs: '${seed}'}\n",
    LAUGHS.encode(), b"name: ${oc.env:SECRET}\n", b"recipes: ['${oc.env:SECRET}']\n", b"name: x${oc.select:name}\n",
    b"? [a, b]\n: c\n", b"seed: !!python/object/apply:os.system ['touch pwned']\n", b"!!python/object:os.system {}\n",
    b"seed: *x\n", b"name: !!binary aGk=\n", b"name: !x y\n", b"seed: !!timestamp 2001-01-01\n",
    b"name: 2001-01-01\n", b"a: !!set {b, c}\n", b"---\nseed: 1\n---\nseed: 2\n", b"%YAML 9.9\n---\nseed: 1\n",
    b"%TAG ! x\n", b"<<: 1\n", b"<<: {seed: 1}\n", b"seed: !!int x\n", b"\xef\xbb\xbfseed: 1\n",
    "seed: 1\n".encode("utf-16"), b"\x00\x01\x02", b"\xff\xfe", bytes(range(256)), b"PK\x03\x04",
    b"x: " + b"[" * 40_000, b"x: " + b"{a: " * 2_000, b"- " * 20_000, b"x: 1\n" * 50_000, b"a" * 200_000,
    b"#" * 99_000, b"seed: 0x" + b"f" * 5_000 + b"\n", b"seed: " + b"9" * 5_000, b"defaults: [nosuch]\n",
    b"defaults: 1\n", b"defaults: [_self_]\n", b"defaults: [{recipe: baseline}]\n",
    b"defaults:\n  - /recipe/baseline\n  - _self_\n", b"hydra: 1\n", b"hydra: {x: 1}\n", b"hydra: {mode: FOO}\n",
    b"hydra: {run: {dir: '${oc.env:SECRET}'}}\n", b"hydra: {sweeper: {params: {seed: 'range(0,1e12)'}}}\n",
    b"# @package x\nseed: 1\n", b"# @package _global_\n", b"1: 2\n", b"null: 1\n", b"true: 1\n", b"seed: 1e400\n",
    b"'': 1\n", b'name: "\\e[31m"\n', b'name: "a\\nb"\n', b'name: "\\0"\n', b"name: |\n  a\n  b\n",
    b'name: "\\uD800"\n', b"train: {epochs: {}}\n", b"model:\n  units: [[1]]\n", b"model:\n  convolutions: [[1]]\n",
    b"data: {files: {}}\n", b"optimizer:\n  learning_rate: .nan\n",
]
# fmt: on
def one_of(values: Sequence[Any]) -> st.SearchStrategy[Any]:
    """As sampled_from, which Hypothesis would print whole, megabytes of it."""
    return st.integers(0, len(values) - 1).map(lambda place: values[place])


VALUES = st.one_of(one_of(HOSTILE), st.text(max_size=20), st.integers().map(str), st.floats().map(str))
WORDS = st.one_of(
    st.sampled_from([f"{key}={value}" for key, values in PLAIN.items() for value in values]),
    st.builds("{}={}".format, st.sampled_from(list(PLAIN)), VALUES),
    st.builds("{}={}".format, st.sampled_from(STRANGE_KEYS), st.one_of(VALUES, st.sampled_from(["1", "x"]))),
    one_of([*STRANGE_KEYS, *HOSTILE, *PLAIN]),
    st.text(alphabet=string.printable, max_size=30),
    st.text(max_size=10),
)
FILES = ["params.yaml", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml"))]


@st.composite
def edits(draw: st.DrawFn) -> Edit:
    file = draw(st.sampled_from(FILES))
    own = (ROOT / file).read_bytes()
    how = draw(st.sampled_from(["instead", "after", "value", "cut", "flip", "without"]))
    if how == "instead":
        return Edit(file, draw(one_of(CONTENTS)))
    if how == "after":
        return Edit(file, own + draw(one_of(CONTENTS)))
    place = draw(st.integers(0, len(own) - 1))
    if how == "cut":
        return Edit(file, own[:place])
    if how == "flip":
        return Edit(file, own[:place] + bytes([own[place] ^ draw(st.integers(1, 255))]) + own[place + 1 :])
    lines = own.splitlines(keepends=True)
    number = draw(st.integers(0, len(lines) - 1))
    key, colon, _ = lines[number].partition(b":")
    changed = key + colon + b" " + draw(VALUES).encode(errors="replace") + b"\n" if how == "value" else b""
    return Edit(file, b"".join([*lines[:number], changed, *lines[number + 1 :]]))


TRIES = st.one_of(
    st.builds(Try, st.lists(WORDS, min_size=1, max_size=4), st.none()),
    st.builds(Try, st.lists(WORDS, max_size=1), edits()),
    st.builds(
        Try, st.sampled_from([[], ["recipe=accurate"], ["recipe=fast"], ["sweep=seeds"], ["-m", "seed=1,2"]]), edits()
    ),
)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A copy of the configuration, which the commands of this process take for the repository's."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    for module in (command, config, files, sweep):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    for module in (command, config, files):
        monkeypatch.setattr(module, "CONF", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    # Hydra ends all logging that was set up before: absl's, there once TensorFlow is, would close pytest's stderr.
    shutdown = logging.shutdown
    monkeypatch.setattr(
        logging, "shutdown", lambda of: shutdown([ref for ref in of if type(ref()).__module__ != "absl.logging"])
    )
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    for name in ("DVC_STAGE", "DVC_ROOT", sweep.PARENT):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@contextmanager
def edited(folder: Path, edit: Edit | None) -> Iterator[None]:
    if edit:
        (folder / edit.file).write_bytes(edit.content)
    try:
        yield
    finally:
        if edit:
            shutil.copy(ROOT / edit.file, folder / edit.file)


@contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def answer(words: list[str]) -> str | Config | None:
    """What the command `train` makes of these words: its last line, or the configuration that it would train.

    None where it printed help. All else that it raises comes through.
    """
    found = []

    @entry_point
    def train(config: Config) -> None:
        found.append(config)

    os.environ["HYDRA_FULL_ERROR"] = ""  # an earlier command of this process has set it
    sys.argv = ["train", *words]
    try:
        train()
    except SystemExit as end:
        assert not end.code or isinstance(end.code, str), f"exit code {end.code}"
        return end.code or None
    return found[0] if found else None


def what_is_wrong(folder: Path, tried: Try) -> tuple[str, str]:
    """Whether these are taken or refused, and what is wrong with how, if anything."""
    before = sorted(folder.rglob("*"))
    argv, said, errors = sys.argv, io.StringIO(), io.StringIO()
    try:
        with edited(folder, tried.edit), no_longer_than(SECONDS), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", UserWarning)
            with redirect_stdout(said), redirect_stderr(errors):
                given = answer(tried.words)
    except (Exception, Hang) as error:
        return "lost", f"{type(error).__name__}: {error}"
    finally:
        sys.argv = argv
    left = [path for path in folder.rglob("*") if path not in before and path.is_file()]
    for name in {path.name for path in folder.iterdir()} - {"conf", "params.yaml"}:
        shutil.rmtree(name)
    # No values, but what Hydra is told: where to write, what to call. What it says of that is its own.
    wiring = tried.edit is not None and Path(tried.edit.file).parent.name == "conf"
    wrong = [f"{left[0].name} left"] if left and not wiring else []
    wrong += [f"stderr: {errors.getvalue()!r}"] if errors.getvalue() else []
    wrong += [f"warning: {warned[0].message}"] if warned and not wiring else []
    if isinstance(given, str):
        wrong += [] if given.startswith("error: ") and given.isprintable() and len(given) < 1_100 else ["no line"]
        wrong += [] if wiring or names_what_is_given(given, tried) else [f"names nothing given: {given}"]
        wrong += ["secret"] if SECRET in given else []
        return "refused", "; ".join(wrong)
    if given is not None:
        config.validate(given)
        values = json.dumps(to_dict(given))
        wrong += ["secret"] if SECRET in values or "${" in values else []
    return "taken", "; ".join(wrong)


# Limits that depend on other values, what an emptied file lacks, and what a sweep asks for before it opens.
DEPENDING = ("row_strips=", "batch_shards=", "batch_size=", "model.", "model=", "shift=", "missing", "conf/config.yaml")


def names_what_is_given(line: str, tried: Try) -> bool:
    """Whether a refusal names a key that was given, the file that was edited or a key in it."""
    shown = [word.partition("=")[0][:50] or (word.partition("=")[1] and f"={word[1:6]}") for word in tried.words]
    shown += ["''" for word in tried.words if word.startswith("=")]  # the key that it gives
    shown += ["".join(char if char.isprintable() else " " for char in key) for key in shown]
    if tried.edit:
        shown += [tried.edit.file, Path(tried.edit.file).stem]
        shown += [part.partition(":")[0].strip() for part in tried.edit.content.decode(errors="replace").splitlines()]
    return any(key in line for key in shown if key) or any(key in line for key in DEPENDING) or "" in tried.words


def all_are_taken_or_refused(folder: Path, tries: int) -> None:
    counts, lost = Counter[str](), []

    @generated(tries)
    @given(TRIES)
    def one(tried: Try) -> None:
        how, wrong = what_is_wrong(folder, tried)
        counts[how] += 1
        if wrong:
            lost.append(
                f"{wrong}: {[word[:80] for word in tried.words]}"
                + (f" {tried.edit.file} {tried.edit.content[-200:]!r}" if tried.edit else "")
            )

    one()
    total = counts.total()
    survived = total - len(lost)
    record(
        "a value from anywhere is taken, or refused in one line", total, survived, "; ".join(lost)[:500] or "nothing"
    )
    assert not lost, "\n".join(lost[:30])
    assert total >= 0.9 * tries and min(counts["taken"], counts["refused"]) >= total // 20, counts
    print(counts)


def test_generated_configurations_are_taken_or_refused_in_one_line(folder):
    all_are_taken_or_refused(folder, QUICK)


@pytest.mark.slow
def test_two_thousand_generated_configurations_are_taken_or_refused_in_one_line(folder):
    all_are_taken_or_refused(folder, MANY)


# Put on the path of a command, it says at its end whether TensorFlow was imported.
WATCHING = """
import atexit, os, pathlib, sys
atexit.register(lambda: pathlib.Path(os.environ["IMPORTED"]).write_text(str("tensorflow" in sys.modules)))
"""


class Ended(NamedTuple):
    code: int
    said: str
    errors: str
    tensorflow: bool
    seconds: float


def whole_command(folder: Path, words: list[str], scratch: Path) -> Ended:
    """Train in `folder` as a user would."""
    scratch.mkdir(exist_ok=True)
    (scratch / "sitecustomize.py").write_text(WATCHING)
    variables = {"PYTHONPATH": str(scratch), "IMPORTED": str(scratch / "imported"), "HYDRA_FULL_ERROR": ""}
    begin = time.monotonic()
    done = run(sys.executable, "-m", "pipeline.train", *words, cwd=folder, **variables)
    seconds = time.monotonic() - begin
    return Ended(done.returncode, done.stdout, done.stderr, (scratch / "imported").read_text() == "True", seconds)


def found(folder: Path, strategy: st.SearchStrategy[Try], outcome: str, wanted: int) -> list[Try]:
    """Different generated ones with this outcome, which can be typed in a shell."""
    chosen: dict[str, Try] = {}

    @generated(40 * wanted)
    @given(strategy)
    def choose(tried: Try) -> None:
        with suppress(UnicodeEncodeError):
            if len(chosen) < wanted and b"\0" not in b"".join(map(os.fsencode, tried.words)):
                how, _ = what_is_wrong(folder, tried)
                if how == outcome:
                    chosen[repr(tried)] = tried

    choose()
    assert len(chosen) == wanted
    return list(chosen.values())


def one_line_and_nothing_else(folder: Path, tried: Try, scratch: Path) -> str:
    """What is wrong with how a whole command refuses these, if anything."""
    with edited(folder, tried.edit):
        before = sorted(folder.rglob("*"))
        ended = whole_command(folder, tried.words, scratch)
        left = [path for path in folder.rglob("*") if path not in before and path.suffix != ".pyc"]
    wrong = [f"exit code {ended.code}"] if ended.code != 1 else []
    wrong += [] if ended.errors.startswith("error: ") and ended.errors.count("\n") == 1 else [ended.errors[-300:]]
    wrong += [f"{path.name} left" for path in left if path.name != "__pycache__"]
    wrong += ["TensorFlow imported"] if ended.tensorflow else []
    wrong += [f"{ended.seconds:.0f} s"] if ended.seconds > SECONDS else []
    return (
        f"{'; '.join(wrong)}: {[word[:80] for word in tried.words]} {tried.edit and tried.edit.file}" if wrong else ""
    )


@pytest.mark.slow
def test_whole_commands_refuse_in_one_line_without_tensorflow_and_leave_nothing(folder, tmp_path_factory):
    value_edits = TRIES.filter(lambda tried: tried.edit is None or Path(tried.edit.file).parent.name != "conf")
    tries = found(folder, value_edits, "refused", REFUSED)
    places = [tmp_path_factory.mktemp("commands") for _ in range(2)]
    for place in places:
        for name in ("pipeline", "conf", "reference"):
            shutil.copytree(ROOT / name, place / name)
        shutil.copy(ROOT / "params.yaml", place)

    def every_second(number: int) -> list[str]:
        scratch = tmp_path_factory.mktemp("scratch")
        return [one_line_and_nothing_else(places[number], tried, scratch) for tried in tries[number::2]]

    with ThreadPoolExecutor(2) as pool:
        lost = [wrong for wrongs in pool.map(every_second, range(2)) for wrong in wrongs if wrong]
    said = "; ".join(lost)[:500] or "nothing"
    record("a command refuses in one line, without TensorFlow, and leaves nothing", REFUSED, REFUSED - len(lost), said)
    assert not lost, "\n".join(lost)


MILD = {
    key: values for key, values in PLAIN.items() if key.startswith(("seed", "name", "model", "optimizer", "augment"))
}
MILD_WORDS = st.sampled_from([f"{key}={value}" for key, values in MILD.items() for value in values if value != "10"])
SHORT = ["train.examples=64", "train.epochs=1"]


@pytest.mark.slow
def test_whole_commands_train_a_step_with_what_is_taken(folder, clone, tmp_path):
    recipes = st.sampled_from(["baseline", "accurate", "fast"])
    words = st.builds(
        lambda recipe, words: [f"recipe={recipe}", *words, *SHORT],
        recipes,
        st.lists(MILD_WORDS, min_size=1, max_size=2),
    )
    tries = found(folder, st.builds(Try, words, st.none()), "taken", TRAINED)

    def wrong(number: int) -> str:
        ended = whole_command(clone, tries[number].words, tmp_path / f"scratch{number}")
        trained = ended.code == 0 and "epoch 1/1" in ended.said and "model.keras; MLflow run" in ended.said
        return "" if trained else f"{tries[number].words}: {ended.code} {ended.said[-300:]} {ended.errors[-300:]}"

    with ThreadPoolExecutor(2) as pool:
        lost = list(filter(None, pool.map(wrong, range(TRAINED))))
    said = "; ".join(lost)[:500] or "nothing"
    record("a command trains a step with whatever values are taken", TRAINED, TRAINED - len(lost), said)
    assert not lost, "\n".join(lost)
