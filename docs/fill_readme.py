"""Put tables between their marks in README.md: figures there are copied from files, never typed."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLES = ("results/comparison.md", "docs/benchmark/summary.md", "docs/runs/published.md", "docs/runs/comparison.md")
END = "<!-- end -->"


def filled(readme: str, name: str, table: str) -> str:
    before, mark, rest = readme.partition(f"<!-- {name} -->")
    return f"{before}{mark}\n{table}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    path = ROOT / "README.md"
    readme = path.read_text(encoding="utf-8")
    for name in TABLES:
        readme = filled(readme, name, (ROOT / name).read_text(encoding="utf-8"))
    path.write_text(readme, encoding="utf-8")
