"""Put tables between their marks in README.md and docs: figures there are copied from files, never typed."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLES = {
    "results/comparison.md": "README.md",
    "docs/benchmark/summary.md": "README.md",
    "docs/runs/published.md": "README.md",
    "docs/runs/comparison.md": "README.md",
    "docs/runs/fashion_mnist.md": "docs/fashion_mnist.md",
    "docs/runs/fashion_mnist_seed0.md": "docs/fashion_mnist.md",
}
END = "<!-- end -->"


def filled(readme: str, name: str, table: str) -> str:
    before, mark, rest = readme.partition(f"<!-- {name} -->")
    return f"{before}{mark}\n{table}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    for name, page in TABLES.items():
        text = filled((ROOT / page).read_text(encoding="utf-8"), name, (ROOT / name).read_text(encoding="utf-8"))
        (ROOT / page).write_text(text, encoding="utf-8")
