"""The README's table of boards, made from the leaderboards that are kept beside this file.

dipa-bench leaderboard --task sr --study sr-quick --format csv --output studies/results/sr.csv
python studies/results/boards.py        # writes the table into README.md, and says if it changed
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
BEGIN, END = "<!-- boards: python studies/results/boards.py -->", "<!-- end of boards -->"
TASKS = ("sr", "cs", "deblur", "mri")


def boards() -> dict[str, pd.DataFrame]:
    """The kept leaderboards, by task."""
    paths = {task: HERE / f"{task}.csv" for task in TASKS}
    return {task: pd.read_csv(path) for task, path in paths.items() if path.exists()}


def cell(row: pd.Series) -> str:
    """A row's difference with its word; the reference's own PSNR, tuned and as published."""
    half = (row["difference_high"] - row["difference_low"]) / 2
    if row["verdict"] == "reference":
        half = (row["psnr_high"] - row["psnr_low"]) / 2
        return f"{row['psnr']:.2f} ± {half:.2f}"
    text = f"{row['difference']:+.2f} ± {half:.2f} {row['verdict']}".replace("-", "\u2212")
    return f"**{text}**" if row["verdict"] == "better" else text


def table(found: dict[str, pd.DataFrame]) -> str:
    """Methods in rows, tasks in columns, then what each task's numbers hold for."""
    order = pd.concat(found.values()).groupby("method")["difference"].mean()
    order = order.fillna(float("inf")).sort_values(ascending=False)
    lines = ["| | " + " | ".join(f"`{task}`" for task in found) + " |"]
    lines.append("| --- |" + " --- |" * len(found))
    for method in order.index:
        cells = []
        for board in found.values():
            rows = board[(board["method"] == method) & board["psnr"].notna()]
            cells.append(cell(rows.iloc[0]) if len(rows) else "")
        lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    references = [board[board["verdict"] == "reference"].iloc[0] for board in found.values()]
    published = " | ".join(f"{row['published']:.2f}" for row in references)
    lines.insert(2, f"| the reference as published | {published} |")
    lines.append("")
    for task, row in zip(found, references, strict=True):
        scope = f"{row['images']:.0f} test images of {row['subjects']:.0f} subjects"
        setting = str(row["setting"])
        lines.append(f"- `{task}`: {scope}, {row['replicates']:.0f} replicates; {setting}")
    return "\n".join(lines)


def main() -> int:
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    new = f"{before}{BEGIN}\n{table(boards())}\n{END}{after}"
    README.write_text(new, encoding="utf-8")
    print("changed" if new != text else "as it was")
    return 0


if __name__ == "__main__":
    sys.exit(main())
