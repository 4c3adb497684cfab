"""Register the model of a tracked run (run=<id>), and make it the champion if it is better than the one there is.

Better is by McNemar's test on the test digits, each seen once, as the champion will see what it is given.
"""

from __future__ import annotations

from pipeline import comparison, data
from pipeline.command import entry_point
from pipeline.config import ROOT, PipelineError, RunConfig
from pipeline.console import quiet_import


@entry_point
def promote(config: RunConfig) -> None:
    if config.run is None:
        raise PipelineError("no run given: give run=<id>, from a ranking or `mlflow ui`")
    name, run = config.data.name, config.run
    test = data.load_digits(ROOT / "data" / "processed" / "test.npz", config.data)
    with quiet_import():
        from pipeline import tracking
        from pipeline.beyond import registry

    found = tracking.find_run(run, name)
    champion = registry.found(registry.CHAMPION, name)
    if champion is not None and champion.run_id == run:
        print(f"models:/{name}@champion is version {champion.version}, run {run}, already")
        return
    if champion is None:
        version = registry.register(found, name)
        registry.point(registry.CHAMPION, name, version)
        print(f"models:/{name}@champion is version {version}, run {run}: the first")
        return
    verdict = _compared(champion.run_id, run, test, config)
    better = bool(verdict.test and verdict.test.difference > 0 and verdict.p < 1 - config.evaluate.confidence)
    version = registry.register(found, name)
    alias = registry.CHAMPION if better else registry.CHALLENGER
    registry.point(alias, name, version)
    if better and (challenger := registry.found(registry.CHALLENGER, name)) and challenger.version == version:
        registry.drop(registry.CHALLENGER, name)
    stays = "" if better else f"; the champion stays version {champion.version}, run {champion.run_id}"
    print(f"{verdict.sentence}\nmodels:/{name}@{alias} is version {version}, run {run}{stays}")


def _compared(champion: str, run: str, test: data.Digits, config: RunConfig) -> comparison.Verdict:
    from pipeline.beyond.network import load_network

    sides = []
    for words, of in (("the champion", champion), ("this run", run)):
        predictions = load_network(config, of, None, sure=1).probabilities(test.images).argmax(1)
        sides.append(comparison.Side(words, {}, (predictions == test.labels)[None], [], 0, 0))
    [verdict] = comparison.verdicts(sides, config.evaluate.confidence, "test")
    return verdict


if __name__ == "__main__":
    promote()
