"""Write docs/reliability.md from docs/reliability.jsonl, which the tests of `make faults` fill."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.files import replacing  # noqa: E402
from pipeline.surroundings import hardware, versions  # noqa: E402
from pipeline.tables import markdown_table  # noqa: E402

DOCS = ROOT / "docs"


def main() -> None:
    lines = [json.loads(line) for line in (DOCS / "reliability.jsonl").read_text(encoding="utf-8").splitlines()]
    by_promise = defaultdict(list)
    for line in lines:
        by_promise[line["promise"]].append(line)
    rows = [["promise", "tried by", "tries", "survived", "lost"]]
    for promise, of in by_promise.items():
        files = sorted({line["test"].partition("::")[0].rpartition("/")[2] for line in of})
        tries, survived = (str(sum(line[key] for line in of)) for key in ("tries", "survived"))
        lost = ", ".join(dict.fromkeys(line["lost"] or "nothing" for line in of))
        rows.append([promise, ", ".join(files), tries, survived, lost])
    text = (DOCS / "reliability.in.md").read_text(encoding="utf-8")
    for mark, content in (
        ("{table}", markdown_table(rows)),
        ("{where}", f"{hardware()}; {versions()}"),
    ):
        assert mark in text
        text = text.replace(mark, content)
    with replacing(DOCS / "reliability.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
