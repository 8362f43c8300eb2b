"""One file that holds a study: written whole, checked before anything of it is believed.

A ZIP archive. ``manifest.json`` names every other file with its size and SHA-256; below ``study/``
lies the study's folder, below ``tables/`` what analyses want at once. Only JSON, Parquet,
safetensors and text are inside: nothing that is read can run code.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dipa_bench import __version__
from dipa_bench.archive import redaction
from dipa_bench.errors import UserError, brief
from dipa_bench.files import whole, write_json
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RECORD
from dipa_bench.tracking.sync_state import IDENTITY, SENT

FORMAT = 1
MANIFEST, STUDY, TABLES = "manifest.json", "study", "tables"
SETTINGS = "study.json"
TEXT = {".json", ".log", ".txt"}
KINDS = TEXT | {".parquet", ".safetensors"}  # of files inside
DEPTH = 4  # study/<row>/<run>/<file>
LONGEST = 255  # bytes of a name, as file systems allow
CHUNK = 1 << 20
LARGEST_MANIFEST = 64 << 20  # bytes
SPARE, RATIO = 64 << 20, 200  # bytes, and times the archive: no honest one unpacks to more
EPOCH = (1980, 1, 1, 0, 0, 0)
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error)


class Entry(BaseModel):
    """What a manifest says of one file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    size: Annotated[int, Field(ge=0, description="bytes")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """What an archive holds."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    format: int = FORMAT
    version: str = Field(alias="dipa-bench", description="that wrote it")
    study: str
    shortened: list[str] = Field(
        default_factory=list, description="paths of the problem that lost their folders"
    )
    files: dict[str, Entry]


# ---------------------------------------------------------------------------- writing


def write(folder: Path, output: Path) -> Manifest:
    """Writes a study's folder into one file; the same contents give the same bytes.

    Left out are notes of what was sent, locks, checkpoints, damaged journals, links and what is no
    JSON, Parquet, safetensors or text. Paths lose their folders (see `redaction`).

    Args:
        folder: of the study; the caller holds its lock.
        output: of the archive; it appears whole or not at all.

    Returns:
        What the archive holds.

    Raises:
        UserError: a damaged record or table, or an output that is a folder.
        OSError: a disk that is full or read-only.
    """
    if output.is_dir():
        raise UserError(f"{output} is a folder: give --output a file's name")
    study = _settings(folder / SETTINGS)
    places = redaction.places_of(study)
    files: dict[str, Entry] = {}
    with whole(output) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in _contents(folder, study, places):
            files[name] = _add(archive, name, content)
        kept = redaction.without_places(study)["problem"]
        changed = [key for key in redaction.PLACES if kept.get(key) != study["problem"].get(key)]
        manifest = Manifest(version=__version__, study=folder.name, shortened=changed, files=files)
        _add(archive, MANIFEST, _encoded(manifest.model_dump(by_alias=True)))
    return manifest


def _settings(path: Path) -> dict[str, Any]:
    """The raw resolved study in ``study.json``."""
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(study["problem"], dict) and isinstance(study["name"], str):
            return study
    except (ValueError, KeyError, TypeError, RecursionError, FileNotFoundError):
        pass
    raise UserError(f"{path.parent.name!r} has no {SETTINGS} that can be read: it is no study")


def _contents(
    folder: Path, study: Mapping[str, Any], places: Iterable[str]
) -> Iterator[tuple[str, bytes | Path]]:
    """Names and contents of an archive's files, in order."""
    scrub, files = redaction.scrubber(places), _files(folder)
    names = {name for name, _ in files}
    found = {
        place: redaction.redaction(record, scrub)
        for place, record in redaction.records_of(folder).items()
        if f"{place}/{RECORD}" in names
    }
    inside = {f"{place}/{RECORD}": record for place, record in found.items()}
    for name, path in files:
        _check_place(f"{STUDY}/{name}")
        if name in inside:
            yield f"{STUDY}/{name}", _encoded(inside[name].model_dump(mode="json"))
        elif name == SETTINGS:
            yield f"{STUDY}/{name}", _encoded(redaction.without_places(study))
        elif path.suffix == ".txt" or (path.suffix == ".log" and path.parent == folder):
            text = path.read_text(encoding="utf-8", errors="replace")
            yield f"{STUDY}/{name}", scrub(text).encode()
        else:
            yield f"{STUDY}/{name}", path.read_bytes() if path.suffix in TEXT else path
    methods = {one.method: folder / place for place, one in found.items() if one.kind == "method"}
    for name in redaction.JOINED:
        table = redaction.joined_table(folder.name, methods, name)
        if table is not None:
            yield f"{TABLES}/{name}", _parquet(table)
    yield f"{TABLES}/runs.parquet", _parquet(redaction.runs_table(found.values()))


def _files(folder: Path) -> list[tuple[str, Path]]:
    """The files of a study's folder that travel, by their place in it."""
    found = []
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if len(Path(here).relative_to(folder).parts) == DEPTH - 2:
            folders.clear()
        for name in names:
            path = Path(here) / name
            hidden = name.startswith(".") and path != folder / IDENTITY
            known = path.suffix in KINDS or path == folder / IDENTITY
            if known and not hidden and name != SENT and path.is_file() and not path.is_symlink():
                found.append((path.relative_to(folder).as_posix(), path))
    return sorted(found)


def _encoded(value: object) -> bytes:
    return json.dumps(value, indent=1).encode()


def _parquet(table: Any) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, content: bytes | Path) -> Entry:
    """Adds one file; tables and tensors are compact already."""
    info = zipfile.ZipInfo(name, EPOCH)
    info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16  # as on Unix
    small = Path(name).suffix in TEXT
    info.compress_type = zipfile.ZIP_DEFLATED if small else zipfile.ZIP_STORED
    info.file_size = len(content) if isinstance(content, bytes) else content.stat().st_size
    source = io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")
    digest, size = hashlib.sha256(), 0
    with source, archive.open(info, "w") as target:
        while part := source.read(CHUNK):
            digest.update(part)
            size += len(part)
            target.write(part)
    return Entry(size=size, sha256=digest.hexdigest())


# ---------------------------------------------------------------------------- reading


def read_manifest(path: Path) -> Manifest:
    """What an archive says of itself, after its list of files was found to agree.

    Raises:
        UserError: no archive of a study, one of a later format, or one with a file that has no
            business there: outside of its folder, a link, of another kind, unlisted, or too large.
    """
    with _opened(path) as archive:
        return _manifest(archive, path)


@contextlib.contextmanager
def staged(path: Path, studies: Path) -> Iterator[Path]:
    """The study of an archive in a folder that is gone afterwards, unless it was moved.

    Args:
        path: of the archive.
        studies: where studies live; the folder is on the same disk, and no study to anyone.

    Raises:
        UserError: as `read_manifest`, or contents that are not those of the manifest, or no study.
        OSError: a disk that is full or read-only.
    """
    missing = [place for place in (studies, studies.parent) if not place.exists()]
    studies.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=studies, prefix=".import-") as scratch:
            whole = Path(scratch) / "whole" / STUDY  # deeper than anyone looks for runs
            with _opened(path) as archive:
                manifest = _manifest(archive, path)
                _refuse_bomb(manifest, path, studies)
                for name, entry in manifest.files.items():
                    _extract(archive, name, entry, Path(scratch) / "whole", path)
            _check_study(whole, manifest, path)
            yield whole
    finally:
        for place in missing:
            with contextlib.suppress(OSError):  # it is in use now
                place.rmdir()


def adapt(folder: Path, name: str, places: Mapping[str, str]) -> None:
    """Gives a staged study another name, and this machine's places of its images and prior.

    A study under another name is another one: a store must not take it for the first.

    Args:
        folder: as `staged` gave it.
        name: the study's from now on.
        places: keys of `redaction.PLACES` to paths.
    """
    study = _settings(folder / SETTINGS)
    if study["name"] != name:
        (folder / IDENTITY).unlink(missing_ok=True)
    elif not places:
        return
    write_json(folder / SETTINGS, redaction.renamed(study, name, places))
    for place, record in redaction.records_of(folder).items():
        records.write(folder / place, redaction.moved(record, name, places))


def settle(folder: Path, target: Path) -> None:
    """Moves a staged study to where it will live, whole or not at all.

    Raises:
        UserError: there is one already.
    """
    try:
        if not target.exists():
            os.rename(folder, target)
            return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
    raise exists(target)


def exists(target: Path) -> UserError:
    """What to say of a study that is there already."""
    return UserError(f"study {target.name!r} exists in {target.parent}: give another --name")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """An archive to read; what is wrong with it is said in one line."""
    try:
        archive = zipfile.ZipFile(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"archive {path} cannot be read: {reason}") from None
    except (*BROKEN, ValueError):
        raise UserError(
            f"{path} is no archive of a study: give a file that `dipa-bench export` wrote"
        ) from None
    with archive:
        try:
            yield archive
        except BROKEN as error:
            raise UserError(
                f"archive {path} is damaged ({brief(error, kind=False)}): copy or export it again"
            ) from None


def _manifest(archive: zipfile.ZipFile, path: Path) -> Manifest:
    """The manifest, with which the archive's list of files agrees."""
    wrong = UserError(f"{path} is no archive of a study: it has no {MANIFEST} that can be read")
    try:
        info = archive.getinfo(MANIFEST)
    except KeyError:
        raise wrong from None
    if info.file_size > LARGEST_MANIFEST:
        raise wrong
    try:
        raw = json.loads(archive.read(info))
        found = raw["format"]
        if isinstance(found, int) and found > FORMAT:
            writer = str(raw.get("dipa-bench"))[:20]
            raise UserError(
                f"archive {path} has format {found}, made by dipa-bench {writer!r}, and "
                f"this one ({__version__}) reads up to {FORMAT}: update dipa-bench"
            )
        manifest = Manifest.model_validate(raw)
    except (ValidationError, ValueError, KeyError, TypeError, RecursionError, AttributeError):
        raise wrong from None
    _check_listing(archive.infolist(), manifest, path)
    return manifest


def _check_listing(infos: list[zipfile.ZipInfo], manifest: Manifest, path: Path) -> None:
    """Refuses files that the manifest does not know, and those that no study has."""
    seen: set[str] = set()
    for info in infos:
        name = info.orig_filename
        shown = f"archive {path} holds {name[:80]!r}"
        if name in seen or (name != MANIFEST and name not in manifest.files):
            raise UserError(f"{shown} twice or outside of its manifest: export the study again")
        seen.add(name)
        if name != MANIFEST:
            _check_place(name, f"{shown}, which ")
            if info.file_size != manifest.files[name].size:
                raise UserError(f"{shown} in another size than its manifest says: export it again")
        mode = info.external_attr >> 16
        if (stat.S_IFMT(mode) and not stat.S_ISREG(mode)) or info.is_dir():
            raise UserError(f"{shown}, which is a link or no file: export the study again")
    for name in sorted(manifest.files.keys() - seen):
        raise UserError(f"archive {path} lacks {name[:80]!r}: export the study again")


def _check_place(name: str, shown: str = "a file that ") -> None:
    """Refuses names that could lie anywhere but in a study's folder, and unknown kinds."""
    parts = name.split("/")
    stem = parts[1:] if parts != [STUDY, IDENTITY] else []
    bad = (
        parts[0] not in (STUDY, TABLES)
        or not 2 <= len(parts) <= DEPTH
        or any(not part or part.startswith(".") or part != part.strip() for part in stem)
        or any(len(part.encode("utf-8", "surrogateescape")) > LONGEST for part in parts)
        or not name.isprintable()
        or "\\" in name
    )
    if bad:
        raise UserError(f"{shown}is named {name[:80]!r}: a study has no file of that name")
    if stem and (Path(name).suffix not in KINDS or parts[-1] == SENT):
        raise UserError(
            f"{shown}is none of {', '.join(sorted(KINDS))} that a study is made of: nothing else "
            "is taken in"
        )


def _refuse_bomb(manifest: Manifest, path: Path, studies: Path) -> None:
    """Refuses what would not fit on the disk, or is too much for what it was packed into."""
    size, free = sum(e.size for e in manifest.files.values()), shutil.disk_usage(studies).free
    shown = f"archive {path} unpacks to {size / 2**20:,.0f} MiB"
    if size > SPARE + RATIO * path.stat().st_size:
        raise UserError(f"{shown}, {RATIO} times its own size: no study does, it is not unpacked")
    if size > free:
        raise UserError(f"{shown}, and {free / 2**20:,.0f} MiB are free: make room for it")


def _extract(archive: zipfile.ZipFile, name: str, entry: Entry, place: Path, path: Path) -> None:
    """Writes one file where its size and digest agree with the manifest."""
    target = place / name
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), entry.size
    with archive.open(name) as source, target.open("xb") as file:
        while part := source.read(min(CHUNK, left + 1)):
            left -= len(part)
            if left < 0:
                break
            digest.update(part)
            file.write(part)
    if left or digest.hexdigest() != entry.sha256:
        raise UserError(
            f"archive {path} is damaged ({name!r} is not what its manifest says): copy or export "
            "it again"
        )


def _check_study(folder: Path, manifest: Manifest, path: Path) -> None:
    """Raises `UserError` unless the files are those of the study that the manifest names."""
    try:
        study = _settings(folder / SETTINGS)
        found = redaction.records_of(folder)
        _check_identity(folder / IDENTITY)
        for file in folder.rglob("*"):
            _check_kind(file)
    except UserError as error:
        where = str(error).replace(f"{folder}{os.sep}", "")
        raise UserError(f"archive {path} holds no sound study: {where}") from None
    names = {study["name"], *(record.study for record in found.values())}
    names |= {record.study_file.get("name", manifest.study) for record in found.values()}
    if names != {manifest.study}:
        raise UserError(f"archive {path} mixes the studies {sorted(map(repr, names))}")


def _check_identity(path: Path) -> None:
    if path.exists() and not re.fullmatch(rb"[0-9a-f]{32}\s*", path.read_bytes()[:64]):
        raise UserError(f"{IDENTITY} is no study's")


def _check_kind(path: Path) -> None:
    """Refuses a file that is not what its name says, by its first bytes."""
    if path.suffix == ".parquet":
        with path.open("rb") as file:
            sound = file.read(4) == b"PAR1"
    elif path.suffix == ".safetensors":
        with path.open("rb") as file:
            head = file.read(9)
            sound = head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size
    else:
        return
    if not sound:
        raise UserError(f"{path} is no {path.suffix[1:]} file")
