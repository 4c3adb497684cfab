"""Put results/comparison.md between its marks in README.md: figures there are copied from files, never typed."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results/comparison.md -->", "<!-- end -->"


def filled(readme: str, table: str) -> str:
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}\n{table}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    path = ROOT / "README.md"
    table = (ROOT / "results" / "comparison.md").read_text(encoding="utf-8")
    path.write_text(filled(path.read_text(encoding="utf-8"), table), encoding="utf-8")
