"""Fill the blocks `<!-- name -->` to `<!-- end -->` of README.md and docs, and write docs/configuration.md.

python -m docs.generate
"""

from __future__ import annotations

import json
import re
import statistics
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import large, power, pruning, reading, report, tables
from benchmarks.report import CONFIDENCE, LABELS, SPLIT, TTA, Studies, Trial
from docs import robustness
from docs.count_lines import line_table
from pipeline.base import schema, verb_schemas
from pipeline.base.help import described
from pipeline.base.validation import fields
from pipeline.metrics.metrics import wilson_interval
from pipeline.metrics.significance import mean_interval

END = "<!-- end -->"
README_HEAD = ("recipe", "parameters", "epochs", "seeds", "test accuracy", "with TTA", "training time")
README_ROWS = ("published", "keras_convnet", "baseline", "fast", "accurate", "one_look")
COPIED = {  # pages, and the files of docs/runs that are copied into them
    "sweeps": ["ranking.md", "effects.md"],
    "comparing": ["comparison.md", "folds.md", "published.md"],
    "fashion_mnist": ["fashion_mnist.md", "fashion_mnist_seed0.md"],
}
MADE = {"benchmark": tables.blocks, "serving": tables.serving_blocks, "scale": tables.scale_blocks}
MADE |= {"robustness": robustness.blocks, "sweeps": pruning.blocks, "comparing": power.blocks, "your-own": large.blocks}
MADE |= {"predicting": reading.blocks}
Read = Callable[[str], str]  # from a path in this repository to the text of the file


def blocks(read: Read) -> Iterator[tuple[str, str, str]]:
    """Yield page, name and text of every block that is made of committed results."""
    head, _, best = read("docs/runs/ranking.md").splitlines()[:3]
    compared = textwrap.wrap(read("docs/runs/comparison.md").splitlines()[0].strip("*"), report.WIDTH - 4)
    champion = read("docs/runs/champion.txt")
    shown = {"sweep": [head, best], "compare": compared, "promote": champion.splitlines()[4:5]}
    yield "README.md", "results", readme_table(report.load(read))
    for name, lines in shown.items():
        yield "README.md", name, "".join(f"    {re.sub(' {2,}', ' ', line)}\n" for line in lines)
    for page, name in ((page, f"docs/runs/{name}") for page, names in COPIED.items() for name in names):
        yield f"docs/{page}.md", name, read(name)
    for page, make in MADE.items():
        for name, text in make(read).items():
            yield f"docs/{page}.md", name, text
    yield "docs/predicting.md", "looks", read("benchmarks/results/looks.md")
    yield "docs/serving.md", "champion", textwrap.indent(champion, "    ")
    yield "docs/reliability.md", "faults", fault_table(read("docs/reliability.jsonl"))


def readme_table(studies: Studies) -> str:
    """Return README's table, means over seeds, and the notes that its figures need."""
    rows, times = [], report.by_name(studies["time"])
    seeds = {(name, digits): trials for name, _, digits, trials, _ in report.groups(studies)}
    for name, digits in (*((name, SPLIT) for name in README_ROWS), ("accurate", report.ALL)):
        if not (trials := seeds.get((name, digits))):
            continue
        epochs = report.EPOCHS[name]
        label = LABELS[name] + f", {digits:,} digits" * (digits != SPLIT)
        time = report.training_time(times[name], epochs).partition(" (")[0] + " s" if digits == SPLIT else "–"
        row = [label, f"{trials[0]['num_params']:,}", str(epochs), str(len(trials))]
        rows.append([*row, mean_accuracy(trials), mean_accuracy(trials, TTA), time])
    best = seeds["accurate", SPLIT]
    [seed_0] = [trial for trial in best if report.argument(trial, "seed") == 0]
    plain, tta = (statistics.mean(len(trial[f"test_wrong{suffix}"]) for trial in best) for suffix in ("", TTA))
    sampling = wilson_interval(best[0]["test_digits"] - round(tta), best[0]["test_digits"], CONFIDENCE)
    note = (
        f"Means over seeds, last epoch, trained on {SPLIT:,} digits unless noted. In brackets: 95 % t interval of the "
        "mean over seeds. TTA is test-time augmentation: mean logits of a digit and its four one-pixel shifts. The "
        "choice of the test digits adds more uncertainty than the seeds: the 95 % Wilson interval of `accurate` with "
        f"TTA is {report.interval(*sampling)} %. Seed 0 of `accurate`, which `dvc repro` trains, makes "
        f"{len(seed_0[f'test_wrong{TTA}'])} errors with TTA (mean of {len(best)} seeds: {tta:.1f}) and "
        f"{len(seed_0['test_wrong'])} without (mean {plain:.1f}). Training time: median of "
        f"{len(times['accurate'])} rounds on {studies['time'][0]['hardware']}; ≈: extrapolated from 3 epochs."
    )
    return report.table(README_HEAD, rows) + f"\n{textwrap.fill(note, report.WIDTH, break_on_hyphens=False)}\n"


def mean_accuracy(trials: Sequence[Trial], suffix: str = "") -> str:
    """Return the mean test accuracy with its t interval; a dash where the trials have none."""
    if f"test_wrong{suffix}" not in trials[0]:
        return "–"
    mean = mean_interval(report.accuracies(trials, suffix), CONFIDENCE)
    return f"{report.percent(mean.mean)} ({report.interval(mean.low, mean.high)})"


def fault_table(recorded: str) -> str:
    """Return how many faults each file of tests tried and survived, and where."""
    *faults, last = (json.loads(line) for line in recorded.splitlines())
    files = defaultdict(list)
    for fault in faults:
        files[fault["test"].partition("::")[0].rpartition("/")[2]].append(fault)
    rows = []
    for name, some in sorted(files.items()):
        tries, survived = (f"{sum(fault[key] for fault in some):,}" for key in ("tries", "survived"))
        lost = ", ".join(dict.fromkeys(fault["lost"] or "nothing" for fault in some))
        rows.append([name, str(len({fault["promise"] for fault in some})), tries, survived, lost])
    head = ("tests", "kinds of faults", "tries", "survived", "lost")
    return f"{report.table(head, rows)}\n{report.provenance(last)}"


def configuration() -> str:
    """Return docs/configuration.md: every key with type, range and meaning, a table per section."""
    sections, common = defaultdict(list), set(fields(schema.Config))
    for row in described(schema.Config):
        sections[row[0].rpartition(".")[0]].append(row)
    sections["Each of data.sources"] = list(described(schema.Source))
    sections["Each of model.convolutions"] = list(described(schema.Convolution))
    for name, part in vars(verb_schemas).items():
        if name.endswith("Config") and name not in ("Config", "PredictorConfig"):
            commands = "evaluate, promote, reproduce" if name == "RunConfig" else name.removesuffix("Config").lower()
            sections[f"Command {commands}"] = [row for row in described(part) if row[0] not in common]
    text = (
        "# Configuration\n\nGenerated by `make docs` from `pipeline/base/schema.py` and `verb_schemas.py`.\n"
        "`python -m pipeline.<command> --help` shows the same keys with their values. Shared values are in\n"
        "params.yaml, those of a recipe in conf/recipe, those of a data set in conf/data.\n"
    )
    for section, rows in sections.items():
        text += f"\n## {section or 'General'}\n\n| key | type and range | meaning |\n| - | - | - |\n"
        text += "".join(f"| `{key}` | {kind} | {meaning} |\n".replace("<", "\\<") for key, kind, meaning in rows)
    return text


def filled(page: str, name: str, text: str) -> str:
    """Return the page with this text in the block of that name."""
    before, mark, rest = page.partition(f"<!-- {name} -->")
    return f"{before}{mark}\n{text}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    made = list(blocks(lambda name: Path(name).read_text(encoding="utf-8")))
    for page, name, text in [*made, ("docs/architecture.md", "lines", line_table(Path()))]:
        content = Path(page).read_text(encoding="utf-8")
        Path(page).write_text(filled(content, name, text), encoding="utf-8")
    Path("docs/configuration.md").write_text(configuration(), encoding="utf-8")
