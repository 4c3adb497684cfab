"""The tracker is unreachable, in every way and at any request: training continues, and in the end it has all rows."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from faults_report import record
from lab import Ended, Lab, one_line, positions
from proxy import KINDS

pytestmark = pytest.mark.faults

EPOCHS = 3  # of the lab's training
ALL = 1 << 60  # the last of requests without end
TRAININGS = 8  # of a kind, over the requests that a training makes
KILLS = 15
# What can happen to one request, and over which requests of sending; to the server the last two are as `cut`.
STRIDES = {"lose": 1, "cut": 1, "500": 3, "hang": 3}
SINGLE = tuple(STRIDES)
SYNC = "python -m pipeline.sync"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab"), digits) as lab:
        yield lab


@pytest.fixture(scope="module")
def trained(lab: Lab) -> Path:
    """What a training leaves whose tracker was never there."""
    lab.begin()
    lab.proxy.spoil("refuse")
    ended = lab.run("train")
    assert wrong_end(lab, "train", ended) == []
    lab.seconds["train"] = min(ended.seconds, lab.seconds["train"])  # the first was slower
    return lab.keep("trained")


@pytest.fixture(scope="module")
def evaluated(lab: Lab, trained: Path) -> Path:
    """What a training and its evaluation leave whose tracker was never there."""
    lab.begin(trained)
    lab.proxy.spoil("refuse")
    assert wrong_end(lab, "evaluate", lab.run("evaluate")) == []
    return lab.keep("evaluated")


def wrong_end(lab: Lab, verb: str, ended: Ended) -> list[str]:
    """What is wrong with the end of a verb whose tracker was away: its results have to be whole."""
    if verb == "sync":
        fine = ended.stderr == "" if ended.code == 0 else ended.code == 1 and one_line(ended.stderr)
        return [] if fine else [f"exit code {ended.code}: {ended.stderr[-1000:]}"]
    wrong = [] if (ended.code, ended.stderr) == (0, "") else [f"exit code {ended.code}: {ended.stderr[-1000:]}"]
    found = lab.state()
    wrong += [
        f"{name} is not as with a tracker"
        for name, value in lab.expected[verb].items()
        if name.startswith(Lab.WRITTEN) and found.get(name) != value
    ]
    if found["left in outputs"] and ended.stdout.count(SYNC) != 1:
        wrong.append(f"left {found['left in outputs']}, and said {ended.stdout!r}")
    return wrong


def tried(
    lab: Lab, verb: str, kind: str, first: int = 1, last: int = ALL, kept: Path | None = None, whole: str = ""
) -> list[str] | None:
    """Spoil requests of a command, heal the tracker, send what is left: what is wrong then, or None if none was spoilt.

    `whole` is the verb that everything was done for in the end, if it is another.
    """
    lab.begin(kept)
    lab.proxy.spoil(kind, first, last)
    ended = lab.run(verb, **impatient(kind))
    if len(lab.proxy.asked) < first and kind != "refuse":
        return None
    where = f"{verb}, {kind} at request {first} to {last if last < ALL else 'the end'}"
    wrong = wrong_end(lab, verb, ended) or lab.wrong_after_sending(whole or verb)
    return [f"{where}: {one}" for one in wrong]


def impatient(kind: str) -> dict[str, str]:
    """Less patience with a hanging tracker than a user has who sets nothing, for the sake of the test's time."""
    return {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1"} if kind == "hang" else {}


def survived(promise: str, tries: Iterable[list[str] | None]) -> None:
    """Count tries and report them; `tries` gives what was wrong after each, None for one whose fault did not happen."""
    counted = [wrong for wrong in tries if wrong is not None]
    failed = ["; ".join(wrong[:3]) for wrong in counted if wrong]
    record(promise, len(counted), len(counted) - len(failed), " | ".join(failed) or "nothing")
    assert counted and not failed, "\n".join(failed)


def test_a_training_without_a_tracker_ends_well_and_is_sent_later(lab: Lab, trained: Path) -> None:
    lab.begin(trained)
    survived("training, tracker down from the start", [lab.wrong_after_sending("train")])


@pytest.mark.parametrize("kind", ["lose"])
@pytest.mark.sample
def test_a_training_loses_its_tracker_in_the_middle(lab: Lab, kind: str) -> None:
    middle = lab.asked["train"] // 3
    survived(f"training, tracker fails ({kind}) in the middle", [tried(lab, "train", kind, middle)])


def test_two_evaluations_without_a_tracker_are_both_kept_and_both_sent(lab: Lab, trained: Path) -> None:
    lab.begin(trained)
    lab.proxy.spoil("refuse")
    for _ in range(2):
        assert wrong_end(lab, "evaluate", lab.run("evaluate")) == []
    assert len(list((lab.folder / "outputs/.pending").iterdir())) == 3
    wrong = lab.wrong_after_sending("evaluate", repetitions=1)
    survived("two evaluations of one model, tracker down", [wrong])


def test_an_error_of_our_own_files_is_not_said_of_the_store(lab: Lab) -> None:
    lab.begin()
    results = lab.folder / "results/recipes/baseline"
    request = lab.request("train")  # writes what `dvc repro` has composed
    composed = (results / "config.yaml").read_bytes()
    (results / "history.csv").mkdir()
    [ended] = lab.forks.run(request)
    assert ended.code == 1 and one_line(ended.stderr), ended
    assert ended.stderr.startswith(f"error: {results}/.history.") and "MLflow" not in ended.stderr, ended
    (results / "history.csv").rmdir()
    assert (results / "config.yaml").read_bytes() == composed
    again = lab.run("train")
    assert f"continues after epoch {EPOCHS}" in again.stdout
    survived(
        "training, a result cannot be written", [wrong_end(lab, "train", again) or lab.wrong_after_sending("train")]
    )


def test_what_is_left_is_sent_by_the_next_run(lab: Lab, trained: Path) -> None:
    lab.begin(trained)
    lab.finish("evaluate")
    assert lab.state()["left in outputs"] == []
    survived("training, tracker back for the evaluation", [lab.wrong_after_sending("evaluate")])


def test_a_training_killed_while_its_tracker_is_away_continues(lab: Lab, trained: Path) -> None:
    tries = (killed(lab, share, "refuse") for share in (0.4, 0.2, 0.1, 0.05))  # some may end before they are killed
    survived("training killed, tracker away", [next(wrong for wrong in tries if wrong is not None)])


def killed(lab: Lab, share: float, kind: str, first: int = 1, back: bool = False) -> list[str] | None:
    """Kill a training after a share of its time, its tracker away; start it again, the tracker `back` or not."""
    lab.begin()
    lab.proxy.spoil(kind, first)
    moment = share * lab.seconds["train"]
    ended = lab.run("train", (moment, signal.SIGKILL), **impatient(kind))
    if ended.code == 0:
        return None  # it was faster
    if back:
        lab.proxy.heal()
    finished = "FINISHED" in str([path.read_text() for path in lab.folder.glob("outputs/stages/*/run.json")])
    again = lab.run("train", **({} if back else impatient(kind)))
    # DVC has not seen it end: it was finished, and is trained again.
    wrong = wrong_end(lab, "train", again) or lab.wrong_after_sending("train", repetitions=int(finished))
    return [f"{kind} from request {first}, killed after {moment:.2f} s: {one}" for one in wrong]


@pytest.mark.parametrize("kind", SINGLE)
def test_any_single_request_of_a_training_may_fail(lab: Lab, kind: str) -> None:
    places = positions(lab.asked["train"], TRAININGS)
    survived(f"training, one request fails: {kind}", (tried(lab, "train", kind, at, at) for at in places))


@pytest.mark.parametrize("kind", KINDS)
def test_a_tracker_may_fail_from_any_request_on(lab: Lab, kind: str) -> None:
    places = positions(lab.asked["train"], TRAININGS)
    survived(f"training, all requests fail from the Nth on: {kind}", (tried(lab, "train", kind, at) for at in places))


@pytest.mark.parametrize("kind", SINGLE)
def test_a_tracker_may_come_back_while_training(lab: Lab, kind: str) -> None:
    places = [(1, 1), (1, 2), (2, 4), (5, 8)]
    survived(f"training, tracker back later: {kind}", (tried(lab, "train", kind, *some) for some in places))


@pytest.mark.parametrize("kind", SINGLE)
def test_each_single_request_of_sending_may_fail(lab: Lab, evaluated: Path, kind: str) -> None:
    def each() -> Iterator[list[str] | None]:
        at = 1
        while (wrong := tried(lab, "sync", kind, at, at, evaluated, "evaluate")) is not None:
            yield wrong
            at += STRIDES[kind]

    which = {1: "each request", 3: "every third request"}[STRIDES[kind]]
    survived(f"sending a training and its evaluation, {which} fails once: {kind}", each())


@pytest.mark.parametrize("kind", KINDS)
def test_sending_may_fail_from_any_request_on(lab: Lab, evaluated: Path, kind: str) -> None:
    places = positions(lab.asked["train"] + lab.asked["evaluate"], TRAININGS)
    tries = (tried(lab, "sync", kind, at, ALL, evaluated, "evaluate") for at in places)
    survived(f"sending, all requests fail from the Nth on: {kind}", tries)


@pytest.mark.parametrize("kind", SINGLE)
def test_any_request_of_an_evaluation_may_fail(lab: Lab, trained: Path, kind: str) -> None:
    places = positions(lab.asked["train"] + lab.asked["evaluate"], TRAININGS // 2)
    for last, words in ((lambda at: at, "one request fails"), (lambda _: ALL, "all fail from the Nth on")):
        tries = (tried(lab, "evaluate", kind, at, last(at), trained) for at in places)
        survived(f"evaluation, {words}: {kind}", tries)


def test_a_training_killed_at_any_moment_while_its_tracker_is_away_continues(lab: Lab, trained: Path) -> None:
    chance = random.Random(1)

    def tries() -> Iterator[list[str] | None]:
        for number in range(KILLS):
            first = chance.choice([1, lab.asked["train"] // 4, lab.asked["train"] // 2])
            yield killed(lab, chance.random(), KINDS[number % len(KINDS)], first, chance.random() < 0.5)

    survived("training killed at random moments, tracker away", tries())


def test_sending_may_be_killed_at_any_moment(lab: Lab, evaluated: Path) -> None:
    lab.begin(evaluated)
    whole = lab.finish("sync").seconds
    chance = random.Random(2)

    def tries() -> Iterator[list[str] | None]:
        for _ in range(KILLS):
            lab.begin(evaluated)
            moments = [chance.uniform(0.05, whole) for _ in range(2)]
            ends = [lab.run("sync", (moment, signal.SIGKILL)).code for moment in moments]
            wrong = lab.wrong_after_sending("evaluate")
            yield [f"killed after {moments}: {one}" for one in wrong] if any(ends) else None

    survived("sending killed at random moments, twice", tries())


def test_the_server_itself_may_be_killed_and_started_again(lab: Lab) -> None:
    lab.begin()

    def kill() -> None:
        while len(lab.proxy.asked) < lab.asked["train"] // 2:
            time.sleep(0.005)
        lab.server.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    ended = lab.run("train")
    killer.join()
    lab.server.start()
    lab.server.wait()
    survived("training, the server killed", [wrong_end(lab, "train", ended) or lab.wrong_after_sending("train")])


def test_a_hanging_tracker_costs_a_training_seconds(lab: Lab) -> None:
    seconds = {}
    for kind in ("", "hang"):
        lab.begin()
        if kind:
            lab.proxy.spoil(kind)
        ended = lab.run("train", MLFLOW_HTTP_REQUEST_TIMEOUT="5")  # as pipeline/base/project.py has it
        assert wrong_end(lab, "train", ended) == []
        seconds[kind or "healthy"] = ended.seconds
    wrong = lab.wrong_after_sending("train")
    print(f"training took {seconds['healthy']:.1f} s, with a hanging tracker {seconds['hang']:.1f} s")
    assert seconds["hang"] < seconds["healthy"] + 30, seconds
    survived(f"training, tracker hanging: {seconds['hang'] - seconds['healthy']:.0f} s longer", [wrong])
