"""Tables of README.md and docs/, made from the leaderboards that are kept beside this file.

dipa-bench leaderboard --task sr --study sr-quick --format csv --output studies/results/sr.csv
python studies/results/boards.py        # writes the tables, and says which of them changed
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BEGIN, END = "<!-- {}: python studies/results/boards.py -->", "<!-- end of {} -->"
TASKS = ("sr", "cs", "deblur", "mri")
TRAINING = (70, 280, 1000, 4000)  # images, of the study `learning-curve`
STARTS = {"adjoint": "from A^T y", "lmmse": "from the LMMSE estimate"}  # of the study `starts`


def kept(names: Mapping[str, str]) -> dict[str, pd.DataFrame]:
    """Leaderboards by heading, of those whose file is there.

    Args:
        names: heading to the name of a file.
    """
    paths = {heading: HERE / f"{name}.csv" for heading, name in names.items()}
    return {heading: pd.read_csv(path) for heading, path in paths.items() if path.exists()}


def cell(row: pd.Series) -> str:
    """A row's difference with its word; the reference's own PSNR, tuned and as published."""
    half = (row["difference_high"] - row["difference_low"]) / 2
    if row["verdict"] == "reference":
        half = (row["psnr_high"] - row["psnr_low"]) / 2
        return f"{row['psnr']:.2f} ± {half:.2f}"
    text = f"{row['difference']:+.2f} ± {half:.2f} {row['verdict']}".replace("-", "\u2212")
    return f"**{text}**" if row["verdict"] == "better" else text


def side_by_side(found: dict[str, pd.DataFrame]) -> list[str]:
    """Methods in rows, boards in columns."""
    order = pd.concat(found.values()).groupby("method")["difference"].mean()
    order = order.fillna(float("inf")).sort_values(ascending=False)
    lines = ["| | " + " | ".join(found) + " |"]
    lines.append("| --- |" + " --- |" * len(found))
    for method in order.index:
        cells = []
        for board in found.values():
            rows = board[(board["method"] == method) & board["psnr"].notna()]
            cells.append(cell(rows.iloc[0]) if len(rows) else "")
        lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    return lines


def references(found: dict[str, pd.DataFrame]) -> list[pd.Series]:
    """Each board's row of the reference."""
    return [board[board["verdict"] == "reference"].iloc[0] for board in found.values()]


def scope(name: str, row: pd.Series) -> str:
    """What the numbers of a board hold for, as an item of a list."""
    images = f"{row['images']:.0f} test images of {row['subjects']:.0f} subjects"
    runs = f"{row['replicates']:.0f} replicate" + ("s" if row["replicates"] > 1 else "")
    return f"- {name}: {images}, {runs}; {row['setting']}"


def boards() -> str:
    """The tasks side by side."""
    found = kept({f"`{task}`": task for task in TASKS})
    lines, rows = side_by_side(found), references(found)
    published = " | ".join(f"{row['published']:.2f}" for row in rows)
    lines.insert(2, f"| the reference as published | {published} |")
    return "\n".join([*lines, "", *map(scope, found, rows)])


def learning_curve() -> str:
    """Numbers of training images side by side."""
    found = kept({f"{count:,} images": f"learning-curve-{count}" for count in TRAINING})
    return "\n".join([*side_by_side(found), "", *map(scope, found, references(found))])


def starts() -> str:
    """Operators in rows, starts in columns: PSNR, and the gain over the identity from there."""
    board = pd.read_csv(HERE / "starts.csv").set_index("method")
    operators = dict.fromkeys(name.rpartition("-")[0] for name in board.index)
    lines = ["| | " + " | ".join(STARTS.values()) + " |", "| --- |" + " --- |" * len(STARTS)]
    for operator in sorted(operators, key=lambda name: -board.loc[f"{name}-lmmse", "psnr"]):
        cells = []
        for start in STARTS:
            row, plain = board.loc[f"{operator}-{start}"], board.loc[f"identity-{start}"]
            gain = "" if row.name == plain.name else f" ({row['psnr'] - plain['psnr']:+.2f})"
            cells.append(f"{row['psnr']:.2f}{gain}".replace("-", "\u2212"))
        lines.append(f"| `{operator}` | " + " | ".join(cells) + " |")
    reference = board[board["verdict"] == "reference"].iloc[0]
    return "\n".join([*lines, "", scope("`starts`", reference)])


TABLES = {  # file and place to its table
    ("README.md", "boards"): boards,
    ("docs/learned.md", "learning curve"): learning_curve,
    ("docs/learned.md", "starts"): starts,
}


def main() -> int:
    for (file, place), made in TABLES.items():
        path = ROOT / file
        text = path.read_text(encoding="utf-8")
        begin, end = BEGIN.format(place), END.format(place)
        before, rest = text.split(begin)
        new = f"{before}{begin}\n{made()}\n{end}{rest.split(end)[1]}"
        path.write_text(new, encoding="utf-8")
        print(f"{file}, {place}: {'changed' if new != text else 'as it was'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
