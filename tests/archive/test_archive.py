"""Archives of a study: whole, alike, private, and refused where anything is wrong with them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import shutil
import sqlite3
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from mlflow import MlflowClient

from dipa_bench.archive import archive, redaction
from dipa_bench.errors import UserError
from dipa_bench.tracking import records, sync_state
from dipa_bench.tracking.location import sqlite_path
from dipa_bench.tracking.mlflow_format import experiment_name
from dipa_bench.tracking.store import Store, sync

SETTINGS = {"name": "small", "problem": {"dataset": None, "prior": "dncnn-small", "options": {}}}


@pytest.fixture
def folder(root: Path) -> Path:
    """The hand-made study, with the settings that a real one has."""
    place = records.studies_root(root) / "small"
    (place / archive.SETTINGS).write_text(json.dumps(SETTINGS))
    return place


@pytest.fixture
def packed(folder: Path, tmp_path: Path) -> Path:
    archive.write(folder, tmp_path / "small.zip")
    return tmp_path / "small.zip"


def remade(path: Path, change: Callable[[dict[str, bytes], dict], None]) -> Path:
    """An archive with other contents, and a manifest that was made to agree unless told."""
    with zipfile.ZipFile(path) as file:
        contents = {info.filename: file.read(info) for info in file.infolist()}
    manifest = json.loads(contents.pop(archive.MANIFEST))
    change(contents, manifest)
    other = path.with_name("other.zip")
    with zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in contents.items():
            file.writestr(name, content)
        file.writestr(archive.MANIFEST, json.dumps(manifest))
    return other


def put(contents: dict[str, bytes], manifest: dict, name: str, content: bytes) -> None:
    """A file with an entry that agrees with it."""
    contents[name] = content
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"][name] = {"size": len(content), "sha256": digest}


def refused(path: Path, studies: Path) -> str:
    """What is said of an archive; nothing of it is left."""
    with pytest.raises(UserError) as caught, archive.staged(path, studies):
        pytest.fail("it was taken in")
    assert not studies.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------- what is inside


def test_the_same_study_gives_the_same_bytes_and_all_of_it(folder: Path, tmp_path: Path) -> None:
    for name in ("lock", "dipa/.record-1.tmp", "dipa/journal.log.damaged-0", "dipa/mlflow.json"):
        (folder / name).write_text("{}")
    (folder / "dipa" / ".checkpoints" / "a").mkdir(parents=True)
    (folder / "dipa" / ".checkpoints" / "a" / "fit.safetensors").touch()
    (folder / "dipa" / "seed-0" / "model.pkl").write_bytes(pickle.dumps(1))
    (folder / "dipa" / "link.json").symlink_to("/etc/passwd")
    (folder / "dipa" / "journal.log").write_text('{"op_code": 0}\n')
    found = archive.write(folder, tmp_path / "one.zip")
    later = shutil.copytree(folder, tmp_path / "elsewhere" / "small", symlinks=True)
    archive.write(later, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    names = {name.removeprefix("study/") for name in found.files}
    assert {"study.json", "dipa/record.json", "dipa/trial-0003/traceback.txt"} <= names
    assert {"dipa/journal.log", "none/pictures.safetensors", "tables/runs.parquet"} <= names
    kinds = {Path(name).suffix for name in found.files}
    assert kinds == {".json", ".log", ".txt", ".parquet", ".safetensors"}
    assert not {name for name in names if "mlflow" in name or "check" in name or "link" in name}
    assert not list(tmp_path.glob(".export*"))


def test_pandas_reads_runs_and_images(packed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packed) as file:
        file.extractall(tmp_path / "plain")
    runs = pd.read_parquet(tmp_path / "plain" / "tables" / "runs.parquet")
    assert runs["kind"].value_counts().to_dict() == {"method": 2, "trial": 7, "seed": 2}
    trial = runs[(runs["kind"] == "trial") & (runs["number"] == 6)].iloc[0]
    assert json.loads(trial["params"])["fit.width"] == 64
    assert trial["val/psnr"] == 20.75
    assert trial["state"] == "finished"
    images = pd.read_parquet(tmp_path / "plain" / "tables" / "images.parquet")
    assert images.groupby("method").size().to_dict() == {"dipa": 6, "none": 6}


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("folder:/home/jane doe/photos", "folder:photos"),
        ("/data/weights.pth", "weights.pth"),
        ("~jane/x/", "x"),
        ("folder:photos", "folder:photos"),
        ("den:smooth", "den:smooth"),
        ("faces", "faces"),
    ],
)
def test_paths_keep_their_last_part(text: str, short: str) -> None:
    assert redaction.shortened(text) == short


def test_nothing_private_is_in_an_archive(folder: Path, tmp_path: Path) -> None:
    problem = {
        "dataset": "folder:/srv/jane roe/photos",
        "data_root": "/srv/hidden/data",
        "prior": "/srv/hidden/w.pth",
        "options": {"mask": "/srv/hidden/m.npy"},
    }
    study = {"name": "small", "problem": problem}
    (folder / archive.SETTINGS).write_text(json.dumps(study))
    (folder / "test-reads.log").write_text("evaluate: prior=/srv/hidden/w.pth\n")
    (folder / "dipa" / "trial-0003" / "traceback.txt").write_text(
        f'  File "/srv/hidden/a.py", line 3\n{Path.home()}/x postgresql://jane:s3cret@host/db\n'
    )
    place = folder / "dipa" / "trial-0003"
    reason = "no images at /srv/jane roe/photos: see (/srv/hidden/a.py), trial 3 / 7, http://a/b/c"
    record = records.read(place).model_copy(update={"reason": reason, "study_file": study})
    records.write(place, record)
    (folder / "dipa" / "mlflow.json").write_text('{"uri": "http://hidden", "run_id": "0"}')
    found = archive.write(folder, tmp_path / "small.zip")
    assert found.shortened == ["dataset", "data_root", "prior"]
    with zipfile.ZipFile(tmp_path / "small.zip") as file:
        texts = {info.filename: file.read(info) for info in file.infolist()}
    everything = b"\n".join(texts.values())
    for word in (b"hidden", b"jane", b"s3cret", str(Path.home()).encode() + b"/"):
        assert word not in everything, word
    kept = json.loads(texts["study/dipa/trial-0003/record.json"])
    assert kept["reason"] == "no images at photos: see (a.py), trial 3 / 7, http://a/b/c"
    assert kept["study_file"]["problem"]["options"] == {"mask": "m.npy"}
    assert json.loads(texts["study/study.json"])["problem"]["dataset"] == "folder:photos"


def test_a_damaged_record_is_not_exported(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "small.zip").write_text("an older one")
    (folder / "dipa" / "trial-0001" / "record.json").write_text("{")
    with pytest.raises(UserError, match="damaged run record"):
        archive.write(folder, tmp_path / "small.zip")
    assert (tmp_path / "small.zip").read_text() == "an older one"
    assert not list(tmp_path.glob(".export*"))


# ---------------------------------------------------------------------------- coming in


def test_a_round_trip_loses_nothing(packed: Path, folder: Path, tmp_path: Path) -> None:
    studies = tmp_path / "new" / "studies"
    with archive.staged(packed, studies) as staged:
        archive.settle(staged, studies / "small")
    assert [path.name for path in studies.iterdir()] == ["small"]
    old, new = (
        {path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        for place in (folder, studies / "small")
    )
    assert old.keys() == new.keys()
    for path in old:
        if path.suffix in (".parquet", ".safetensors"):
            assert old[path] == new[path]
    before, after = (redaction.records_of(place) for place in (folder, studies / "small"))
    assert {key: one.model_dump_json() for key, one in before.items()} == {
        key: one.model_dump_json() for key, one in after.items()
    }


def test_another_name_makes_another_study(packed: Path, folder: Path, tmp_path: Path) -> None:
    record = records.read(folder / "dipa")
    here = sync_state.identity(folder / "dipa", record)
    archive.write(folder, packed)
    studies = tmp_path / "new" / "studies"
    with archive.staged(packed, studies) as staged:
        archive.adapt(staged, "other", {"data_root": "/data"})
        archive.settle(staged, studies / "other")
    found = redaction.records_of(studies / "other")
    assert {one.study for one in found.values()} == {"other"}
    study = json.loads((studies / "other" / archive.SETTINGS).read_text())
    assert (study["name"], study["problem"]["data_root"]) == ("other", "/data")
    assert sync_state.identity(studies / "other" / "dipa", found["dipa"]) != here


def test_any_changed_byte_of_a_file_is_refused(packed: Path, tmp_path: Path) -> None:
    raw = packed.read_bytes()
    with zipfile.ZipFile(packed) as file:
        infos = [info for info in file.infolist() if info.file_size]
    for info in infos[:: max(1, len(infos) // 8)]:
        place = info.header_offset + 30 + len(info.filename) + info.compress_size // 2
        spoilt = tmp_path / "spoilt.zip"
        spoilt.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        text = refused(spoilt, tmp_path / "new" / "studies")
        assert "is damaged" in text or "no archive" in text
    (tmp_path / "cut.zip").write_bytes(raw[: len(raw) // 2])
    assert "no archive" in refused(tmp_path / "cut.zip", tmp_path / "new" / "studies")


def test_contents_that_are_not_the_manifests_are_refused(packed: Path, tmp_path: Path) -> None:
    def change(contents: dict[str, bytes], manifest: dict) -> None:
        name = "study/dipa/record.json"
        contents[name] = contents[name].replace(b"27.5", b"99.5")

    assert "not what its manifest says" in refused(remade(packed, change), tmp_path / "a" / "b")


@pytest.mark.exhaustive(after=6)
@pytest.mark.parametrize(
    "name",
    [
        *("../outside.json", "study/../../outside.json", "/etc/outside.json", "study//x.json"),
        *("study\\..\\x.json", "C:/x.json", "study/./x.json", "study/.hidden.json", "x.json"),
        *("study/a/b/c/d.json", "study/" + "a" * 256 + ".json", "study/a\x1b[2J.json", "study"),
        *("study/dipa/.identity", "study/ a/x.json", "tables/../study.json", "study/x\n.json"),
    ],
)
def test_files_that_would_lie_elsewhere_are_refused(name: str, packed: Path, tmp_path) -> None:
    other = remade(packed, lambda contents, manifest: put(contents, manifest, name, b"{}"))
    text = refused(other, tmp_path / "new" / "studies")
    assert "a study has no file of that name" in text
    assert text.isprintable()
    assert not list(tmp_path.rglob("outside.json"))


@pytest.mark.parametrize(
    "name",
    ["study/dipa/model.pkl", "study/dipa/run.py", "study/lock", "study/dipa/mlflow.json"],
)
def test_other_kinds_of_files_are_refused(name: str, packed: Path, tmp_path: Path) -> None:
    other = remade(packed, lambda contents, manifest: put(contents, manifest, name, b"{}"))
    assert "nothing else is taken in" in refused(other, tmp_path / "new" / "studies")


@pytest.mark.parametrize(
    "name", ["study/dipa/matrix.safetensors", "study/dipa/images.parquet", "study/.identity"]
)
def test_files_that_are_not_what_they_are_called(name: str, packed: Path, tmp_path: Path) -> None:
    content = pickle.dumps({"a": 1}) * 10
    other = remade(packed, lambda contents, manifest: put(contents, manifest, name, content))
    assert "no sound study" in refused(other, tmp_path / "new" / "studies")


def test_unlisted_missing_doubled_and_linked_files(packed: Path, tmp_path: Path) -> None:
    studies = tmp_path / "new" / "studies"
    extra = remade(packed, lambda contents, _: contents.update({"study/x.json": b"{}"}))
    assert "outside of its manifest" in refused(extra, studies)
    fewer = remade(packed, lambda contents, _: contents.pop("study/dipa/record.json"))
    assert "lacks 'study/dipa/record.json'" in refused(fewer, studies)
    double = remade(packed, lambda contents, _: None)
    with zipfile.ZipFile(double, "a") as file, pytest.warns(UserWarning):
        file.writestr("study/dipa/record.json", b"{}")
    assert "twice" in refused(double, studies)
    linked = remade(packed, lambda contents, _: contents.pop("study/study.json"))
    with zipfile.ZipFile(linked, "a") as file:
        info = zipfile.ZipInfo("study/study.json")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, b"x" * len(json.dumps(SETTINGS, indent=1)))
    assert "link" in refused(linked, studies)


def test_a_later_format_and_no_archives(packed: Path, tmp_path: Path) -> None:
    studies = tmp_path / "new" / "studies"
    later = remade(packed, lambda _, manifest: manifest.update({"format": 2, "more": 1}))
    assert "update dipa-bench" in refused(later, studies)
    for bad in ({"format": "x"}, {"files": []}, {"study": 3}, {"more": 1}):
        other = remade(packed, lambda _, manifest, bad=bad: manifest.update(bad))
        assert "no archive of a study" in refused(other, studies)
    (tmp_path / "text.zip").write_text("hello")
    assert "no archive of a study" in refused(tmp_path / "text.zip", studies)
    assert "cannot be read" in refused(tmp_path / "nothing.zip", studies)
    assert "cannot be read" in refused(tmp_path, studies)


def test_bombs_are_not_unpacked(packed: Path, tmp_path: Path, monkeypatch) -> None:
    studies = tmp_path / "new" / "studies"
    monkeypatch.setattr(archive, "SPARE", 1 << 20)
    zeros = bytes(200 << 20)
    bomb = remade(packed, lambda contents, m: put(contents, m, "study/zeros.txt", zeros))
    assert bomb.stat().st_size < 1 << 20
    assert "no study does" in refused(bomb, studies)

    def lie(contents: dict[str, bytes], manifest: dict) -> None:
        put(contents, manifest, "study/zeros.txt", zeros)
        manifest["files"]["study/zeros.txt"]["size"] = 10

    assert "another size" in refused(remade(packed, lie), studies)
    free = SimpleNamespace(free=1000)
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda place: free)
    assert "make room" in refused(packed, studies)


def test_records_of_another_study_or_row_are_refused(packed: Path, tmp_path: Path) -> None:
    studies = tmp_path / "new" / "studies"

    def change(**update: object) -> Callable:
        def apply(contents: dict[str, bytes], manifest: dict) -> None:
            record = json.loads(contents["study/dipa/record.json"]) | update
            put(contents, manifest, "study/dipa/record.json", json.dumps(record).encode())

        return apply

    assert "mixes the studies" in refused(remade(packed, change(study="\x1b[2J")), studies)
    assert "belongs" in refused(remade(packed, change(method="../../x")), studies)
    assert "damaged run record" in refused(remade(packed, change(more=1)), studies)
    assert "is of a trial" in refused(remade(packed, change(kind="trial")), studies)


def test_a_study_that_came_meanwhile_stays(packed: Path, tmp_path: Path) -> None:
    studies = tmp_path / "new" / "studies"
    with archive.staged(packed, studies) as staged:
        records.write(studies / "small" / "mine", records.read(staged / "dipa"))
        with pytest.raises(UserError, match="--name"):
            archive.settle(staged, studies / "small")
    assert [path.name for path in (studies / "small").iterdir()] == ["mine"]


@pytest.mark.parametrize("study", [{}, {"problem": []}, {"problem": {"options": 3}, "shifts": [1]}])
def test_settings_of_any_shape_are_gone_through(study: dict) -> None:
    assert redaction.code_of(study) == redaction.places_of(study) == []
    assert redaction.without_places(study) == study


def test_code_is_found_wherever_it_is_named() -> None:
    problem = {"prior": "den:smooth", "dataset": "folder:x", "options": {"operators": "a:b"}}
    shifts = {"far": {"options": {"operators": "c:d"}}}
    assert redaction.code_of({"problem": problem, "shifts": shifts}) == ["den:smooth", "a:b", "c:d"]


# ---------------------------------------------------------------------------- MLflow anew


def keys(uri: str) -> list[str]:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(experiment_name("sr"))
    found = client.search_runs([experiment.experiment_id])
    return sorted(run.data.tags["dipa.key"] for run in found)


@pytest.mark.exhaustive
def test_a_rebuilt_store_has_every_run_once(root: Path, uri: str, empty_database: Path) -> None:
    assert sync(root, uri).sent == 11
    before = keys(uri)
    assert sync(root, uri, rebuild=True).sent == 11  # it has them all
    assert keys(uri) == before
    with contextlib.closing(sqlite3.connect(sqlite_path(uri))) as target:
        with contextlib.closing(sqlite3.connect(empty_database)) as source:
            source.backup(target)
    assert sync(root, uri).sent == 0  # the notes say that it has them
    assert MlflowClient(tracking_uri=uri).get_experiment_by_name(experiment_name("sr")) is None
    assert [sync(root, uri, rebuild=True).sent for _ in range(2)] == [11, 11]
    assert keys(uri) == before
    assert sync(root, uri).unchanged == 11


def test_a_rebuild_brings_runs_up_to_date(root: Path, uri: str) -> None:
    sync(root, uri)
    place = records.studies_root(root) / "small" / "dipa"
    note = sync_state.read_note(place)
    record = records.read(place)
    metrics = record.metrics | {"test/psnr": 30.0}
    records.write(place, record.model_copy(update={"metrics": metrics}))
    sync_state.write_note(place, sync_state.fingerprint(place, note["uri"], "", False) | note)
    sync(root, uri, rebuild=True)
    run = MlflowClient(tracking_uri=uri).get_run(note["run_id"])
    assert run.data.metrics["test/psnr"] == 30.0


@pytest.mark.exhaustive
def test_an_import_is_recognised_by_a_store_that_has_it(
    root: Path, folder: Path, uri: str, tmp_path: Path
) -> None:
    sync(root, uri)
    archive.write(folder, tmp_path / "small.zip")
    studies = records.studies_root(tmp_path / "elsewhere")
    with archive.staged(tmp_path / "small.zip", studies) as staged:
        archive.settle(staged, studies / "small")
    sync(tmp_path / "elsewhere", uri)
    assert len(keys(uri)) == 11
    with archive.staged(tmp_path / "small.zip", studies) as staged:
        archive.adapt(staged, "copy", {})
        archive.settle(staged, studies / "copy")
    store = Store(uri)
    for place in ("dipa", "none"):
        store.send_method(studies / "copy" / place)
    assert len(keys(uri)) == len(set(keys(uri))) == 22
