"""Several tasks in one table, two rows image by image, and tables for papers."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from dashboards.pairs import paired_plot, write_pair
from dipa_bench.errors import UserError
from dipa_bench.reports.across import by_task, compare_rows, only, sorted_by
from dipa_bench.reports.leaderboard import leaderboard
from dipa_bench.reports.rendering import FORMATS, render, render_frame, render_pair
from dipa_bench.tracking.results import TaskResults

HOSTILE = "a_b & c% #1 $x$ {y} ~ ^ \\z <i> | ± …"


@pytest.fixture
def hostile(make_results: Callable[..., TaskResults]) -> TaskResults:
    return make_results(
        *[{"method": "identity"}, {"method": HOSTILE}, {"method": "tie", "parameters": 7}],
        psnr={"identity": [20.0, 21.0], HOSTILE: [21.0, 22.0], "tie": [21.001, 22.001]},
    )


def test_latex_has_the_best_and_its_ties_in_bold(hostile: TaskResults) -> None:
    text = render(leaderboard(hostile), "latex")
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {9}
    bold = [row for row in rows if r"\textbf" in row]
    assert len(bold) == 2 and not any("identity" in row.split("&")[1] for row in bold)
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert body.count(r"\begin{") == body.count(r"\end{") == 2
    assert "faces 32 x 32" in body, "the caption says what the numbers hold for"


def _has_latex() -> bool:
    if not (shutil.which("pdflatex") and shutil.which("kpsewhich")):
        return False
    return not subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True).returncode


@pytest.mark.skipif(not _has_latex(), reason="needs pdflatex with booktabs")
def test_latex_compiles(hostile: TaskResults, tmp_path: Path) -> None:
    pivot = render_frame(by_task(leaderboard(hostile)), "latex")
    tables = render(leaderboard(hostile), "latex") + pivot
    source = (
        "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs}"
        f"\\begin{{document}}\n{tables}\n\\end{{document}}\n"
    )
    (tmp_path / "board.tex").write_text(source)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "board.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_html_shows_names_as_text(hostile: TaskResults) -> None:
    text = render(leaderboard(hostile), "html")
    assert "&lt;i&gt;" in text and "<i>" not in text
    assert text.count("<tr") == 4


def test_columns_are_those_asked_for(hostile: TaskResults) -> None:
    board = leaderboard(hostile)
    for format in FORMATS:
        text = render(board, format, ["method", "parameters", "disagree", "caveat"])
        assert "tie" in text and "20.50" not in text
    assert list(pd.read_csv(io.StringIO(render(board, "csv", ["psnr"]))).columns) == ["psnr"]
    for format in FORMATS:
        with pytest.raises(UserError, match="unknown column 'psnrs': did you mean 'psnr'"):
            render(board, format, ["psnrs"])


def test_many_columns_make_a_wide_table(hostile: TaskResults) -> None:
    """No heading is cut, every row keeps its name, and the text below its width."""
    names = ["method", *(f"psnr_{end}" for end in ("low", "high", "replicate_std")), "task", "rule"]
    names += ["ssim", "ssim_difference", "nmse", "nmse_difference", "null_error_difference"]
    lines = render(leaderboard(hostile), "table", names).splitlines()
    wide = [line for line in lines if len(line.rstrip()) > 100]
    heading = wide[0].split()
    assert heading[0] == "method" and heading[-4:] == ["null", "error", "vs", "identity"]
    assert {line.split()[0] for line in lines if line.strip()} >= {"identity", "tie"}
    assert len(wide) < len(lines)


def test_rows_are_sorted_by_a_column(hostile: TaskResults) -> None:
    board = leaderboard(hostile)
    assert sorted_by(board, "-parameters")["method"].iloc[0] == "tie"
    assert sorted_by(board, "psnr")["method"].iloc[0] == "identity"
    with pytest.raises(UserError, match="unknown column"):
        sorted_by(board, "-nothing")


def test_some_rows_stand_as_they_do_among_all(results: TaskResults) -> None:
    board = leaderboard(results)
    chosen = only(board, ["ldipa", "identity"])
    pd.testing.assert_frame_equal(chosen, board[board["method"].isin(["ldipa", "identity"])])
    with pytest.raises(UserError, match="unknown method 'ldpa': did you mean 'ldipa'"):
        only(board, ["ldpa"])


def test_what_rows_were_given_is_told(make_results: Callable[..., TaskResults]) -> None:
    made = make_results(
        {"method": "identity", "start": "lmmse"},
        {"method": "hessian"},
        {"method": "ldipa", "learns_from": "teacher", "start": "lmmse"},
        {"method": "old", "learns_from": None},
        psnr={name: [20.0, 22.0] for name in ("identity", "hessian", "ldipa", "old")},
    )
    text = " ".join(render(leaderboard(made), "table").split())
    assert "learned from nothing: hessian, identity; from teacher: ldipa" in text
    assert "fitted on training images: identity, ldipa" in text
    made.methods["start"] = "lmmse"
    assert "fitted on training images: all rows" in " ".join(
        render(leaderboard(made), "table").split()
    )


def test_tasks_stand_side_by_side(make_results: Callable[..., TaskResults]) -> None:
    boards = []
    for task, gain in (("sr", 1.0), ("cs", 2.0)):
        made = make_results(
            *[{"method": "identity"}, {"method": "a"}, {"method": f"only-{task}"}],
            psnr={"identity": [20.0, 22.0], "a": [20.0 + gain, 22.0 + gain]},
        )
        boards.append(leaderboard(made).assign(task=task))
    wide = by_task(pd.concat(boards)).set_index("method")
    assert list(wide.index) == ["a", "identity"] and list(wide.columns) == ["cs", "sr"]
    assert wide.loc["a", "sr"].startswith("+1.00 ± 0.00")
    assert wide.loc["a", "cs"].startswith("+2.00 ± 0.00")
    assert wide.loc["identity", "sr"] == "21.00 dB"
    with pytest.raises(UserError, match="--pivot"):
        by_task(pd.concat(boards), "seed")


def test_two_rows_image_by_image(make_results: Callable[..., TaskResults], tmp_path: Path) -> None:
    made = make_results(
        {"method": "a", "params": {"step": 1.0, "mu": 0.1}},
        {"method": "b", "params": {"step": 1.0, "rank": 3}},
        {"method": "b", "study": "s2"},
        psnr={"a": [21.0, 20.0, 25.0], "b": [20.0, 20.5, 22.0]},
    )
    pair = compare_rows(made, "a", "s1/b")
    assert pair.images["image"].tolist() == ["i2", "i0", "i1"]
    assert pair.images["difference"].tolist() == pytest.approx([3.0, 1.0, -0.5])
    assert pair.found.mean == pytest.approx(3.5 / 3)
    assert pair.parameters["parameter"].tolist() == ["mu", "rank"]
    text = render_pair(pair)
    assert "s1/a minus s1/b: +1.17 ± " in text and "undecided" in text and "rank" in text
    page = write_pair(pair, tmp_path / "new" / "pair.html").read_text()
    assert "s1/a against s1/b" in page and "cdn.plot.ly" not in page.split("</title>")[0]
    assert list(paired_plot(pair).data[0].y) == pytest.approx([3.0, 1.0, -0.5])
    with pytest.raises(UserError, match="unknown row 'b'"):
        compare_rows(made, "a", "b")
    with pytest.raises(UserError, match="unknown row 'aa': did you mean"):
        compare_rows(made, "aa", "a")
