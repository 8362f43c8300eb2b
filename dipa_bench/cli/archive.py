"""`dipa-bench export` and `import`: a study from one machine to another."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from dipa_bench.archive import archive, redaction
from dipa_bench.archive.archive import Manifest
from dipa_bench.cli.console import RESULTS
from dipa_bench.config.schema import check_name
from dipa_bench.config.study_file import StudyFile
from dipa_bench.errors import UserError, unknown
from dipa_bench.execution.study_folder import STUDY, claimed, read_study, study_folder
from dipa_bench.tracking import records
from dipa_bench.tracking.connection import StoreUnavailable
from dipa_bench.tracking.location import redacted, resolve_uri
from dipa_bench.tracking.store import Store, SyncReport

WEIGHTS = (".safetensors", ".pth", ".pt")


def export_study(study: str, output: Path | None) -> None:
    """Writes a study into one file and says where."""
    check_name("study name", study)
    root = Path.cwd() / RESULTS
    folder = study_folder(root, study)
    if not (folder / STUDY).is_file():
        known = [path.parent.name for path in records.studies_root(root).glob(f"*/{STUDY}")]
        raise unknown(f"study (below {records.studies_root(root)})", study, known)
    output = output or Path(f"{study}.zip")
    with ExitStack() as held:
        try:
            held.enter_context(claimed(folder))
        except UserError:
            raise UserError(
                f"study {study!r} is being run by another process: wait for it, or stop it (its "
                "command continues it later)"
            ) from None
        kept = read_study(folder)
        manifest = archive.write(folder, output)
    size = output.stat().st_size / 2**20
    print(f"wrote {output} ({len(manifest.files)} files, {size:.1f} MB): `dipa-bench import` it")
    for key in manifest.shortened:
        value = redaction.shortened(getattr(kept.problem, key))
        print(f"{key} is {value!r} in it: paths of this machine are left out")


def import_study(
    file: Path,
    name: str | None,
    places: Mapping[str, str | None],
    trust: bool,
    tracking_uri: str | None,
) -> None:
    """Checks an archive, takes its study in whole, and sends it to the store."""
    given = {key: value for key, value in places.items() if value is not None}
    uri = resolve_uri(tracking_uri, Path.cwd())
    manifest = archive.read_manifest(file)
    name = manifest.study if name is None else name
    check_name("study name", name)
    root = Path.cwd() / RESULTS
    target = study_folder(root, name)
    if target.exists():
        raise archive.exists(target)
    with archive.staged(file, records.studies_root(root)) as folder:
        study = _settings(folder, file)
        _check_places(study, given)
        archive.adapt(folder, name, given)
        if not trust:
            _refuse_code(folder, file)
        archive.settle(folder, target)
    count = len(redaction.records_of(target))
    print(f"study {name!r}: {count} runs in {target}")
    _tell_places(manifest, study, given)
    _send(target, uri)


def _settings(folder: Path, file: Path) -> StudyFile:
    try:
        return read_study(folder)
    except UserError:
        raise UserError(f"archive {file} holds a study that this version cannot read") from None


def _check_places(study: StudyFile, given: Mapping[str, str]) -> None:
    """Only where images and weights lie may be said; what they are is the study's."""
    problem = study.problem
    if "dataset" in given:
        before = problem.dataset or ""
        if before.partition(":")[0] != given["dataset"].partition(":")[0]:
            raise UserError(
                f"--dataset {given['dataset']!r}: the study's is {before or 'its task has one'!r}, "
                "say only where that lies"
            )
    if "prior" in given and not (
        problem.prior.endswith(WEIGHTS) and given["prior"].endswith(WEIGHTS)
    ):
        raise UserError(
            f"--prior {given['prior']!r}: the study's is {problem.prior!r}, only another place of "
            "a weights file can be given"
        )


def _refuse_code(folder: Path, file: Path) -> None:
    """Refuses a study whose runs would import code, unless the user trusts it."""
    studies = [read_study(folder).model_dump(mode="json")]
    studies += [record.study_file for record in redaction.records_of(folder).values()]
    named = dict.fromkeys(code for study in studies for code in redaction.code_of(study))
    if named:
        raise UserError(
            f"the study in {file} names code that its runs would import here "
            f"({', '.join(map(repr, named))}): give --trust-code if you know where it comes from"
        )


def _tell_places(manifest: Manifest, study: StudyFile, given: Mapping[str, str]) -> None:
    """Where images or weights are looked for that lay elsewhere on the other machine."""
    for key in manifest.shortened:
        if key not in given and key in redaction.PLACES:
            option = f"--{key.replace('_', '-')}"
            value = getattr(study.problem, key)
            print(f"{key} {value!r} is looked for in this folder; {option} would say where it is")


def _send(target: Path, uri: str) -> None:
    """Sends the study's runs; a store that is away gets them by a later ``sync``."""
    report = SyncReport()
    try:
        store = Store(uri)
        for path in sorted(target.glob(f"*/{records.RECORD}")):
            report += store.send_method(path.parent)
    except StoreUnavailable as error:
        print(f"not sent: {error}", file=sys.stderr)
        return
    print(f"{redacted(uri)}: {report.sent} runs sent, {report.unchanged} were there already")
    for failure in report.failed:
        print(f"not sent: {failure}", file=sys.stderr)
