"""Run records on disk: they come back as written, and damage is told in one line."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from dipa_bench.errors import UserError
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RunRecord


def test_a_record_comes_back_as_written(tmp_path: Path, hand: SimpleNamespace) -> None:
    written = hand.record(
        "trial",
        "dipa",
        3,
        params={"a": 1, "b": 1.0, "c": True, "d": "1", "e": None, "f": 1e-300},
        metrics={"val/psnr": 31.25, "bad": math.inf},
        series={"loss": [(0, 1.0), (5, 0.1)]},
        study_file={"methods": [{"name": "dipa"}]},
    )
    records.write(tmp_path / "run", written)
    back = records.read(tmp_path / "run")
    assert back == written
    assert {name: type(value) for name, value in back.params.items()} == {
        "a": int,
        "b": float,
        "c": bool,
        "d": str,
        "e": type(None),
        "f": float,
    }


def test_nan_survives(tmp_path: Path, hand: SimpleNamespace) -> None:
    records.write(tmp_path, hand.record("trial", "dipa", metrics={"val/psnr": math.nan}))
    assert math.isnan(records.read(tmp_path).metrics["val/psnr"])


def test_writing_again_replaces_and_leaves_nothing_else(
    tmp_path: Path, hand: SimpleNamespace
) -> None:
    records.write(tmp_path / "run", hand.record("seed", "dipa", state="running"))
    records.write(tmp_path / "run", hand.record("seed", "dipa", state="finished"))
    assert records.read(tmp_path / "run").state == "finished"
    assert [path.name for path in (tmp_path / "run").iterdir()] == [records.RECORD]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "method"}', '{"kind": "nonsense"}'])
def test_a_damaged_record_is_told_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / records.RECORD).write_text(text)
    with pytest.raises(UserError, match="damaged run record") as caught:
        records.read(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_record_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run record"):
        records.read(tmp_path)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="surprise"):
        RunRecord(kind="method", study="s", task="t", method="m", surprise=1)


def test_folders_are_found_in_order(root: Path, hand: SimpleNamespace) -> None:
    hand.write_study(root, "another", ("none",))
    folders = records.method_folders(root)
    assert [f"{path.parent.name}/{path.name}" for path in folders] == [
        "another/none",
        "small/dipa",
        "small/none",
    ]
    names = [records.read(path).name for path in records.children(folders[1])]
    assert names == ["seed 0", "seed 1", *(f"trial {n}" for n in range(len(hand.states)))]
    assert records.read(folders[1]).name == "small / dipa"
