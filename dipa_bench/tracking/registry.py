"""MLflow's model registry: winners as models that one may load by name.

A model is the run of a winner itself. Beside the files that were sent with it lies an ``MLmodel``,
which names the code that reads them (`dipa_bench.runs.mlflow_model`); nothing is pickled.
"""

from __future__ import annotations

import html
import logging
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dipa_bench.errors import UserError, brief
from dipa_bench.files import write_whole
from dipa_bench.tracking.connection import asked
from dipa_bench.tracking.location import redacted
from dipa_bench.tracking.records import RunRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

MODEL = "MLmodel"
LOADER = "dipa_bench.runs.mlflow_model"
SCHEME = "models:/"
log = logging.getLogger(__name__)


def model_name(record: RunRecord) -> str:
    """A winner's name in the registry, ``STUDY.METHOD``."""
    return re.sub(r"[^\w.+-]", "-", f"{record.study}.{record.method}")


def is_model(record: RunRecord) -> bool:
    """Whether a run stands for a winner."""
    return record.kind == "method" and record.state == "finished"


def write_model(folder: Path, record: RunRecord) -> None:
    """Writes a winner's ``MLmodel``, always the same for the same record."""
    from mlflow.models import Model

    moment = datetime.fromtimestamp(record.finished or record.started, UTC)
    created = moment.strftime("%Y-%m-%d %H:%M:%S.%f")
    flavor = {"loader_module": LOADER, "python_version": record.environment.get("python")}
    flavors = {"python_function": flavor}
    text = Model(utc_time_created=created, model_uuid=None, flavors=flavors).to_yaml()
    path = folder / MODEL
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_whole(path, lambda name: name.write_text(text, encoding="utf-8"))


def register(client: MlflowClient, run: Run, record: RunRecord) -> None:
    """Makes a winner's run a version of the model of its name, once.

    A store whose registry refuses keeps the run nevertheless; a warning says why.

    Args:
        client: of the store.
        run: the winner's there.
        record: what was sent.
    """
    from mlflow.exceptions import MlflowException

    name, run_id = model_name(record), run.info.run_id
    try:
        if client.search_model_versions(f"run_id = '{run_id}'", max_results=1):
            return
        try:
            client.create_registered_model(name, description=_description(record, name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        client.create_model_version(name, run.info.artifact_uri, run_id, await_creation_for=0)
    except MlflowException as error:
        log.warning("%s is not in the model registry: %s", name, brief(error))


def _description(record: RunRecord, name: str) -> str:
    return (
        f"Reconstruction by **{html.escape(record.title or record.method)}** (`{record.method}`) "
        f"with the settings that its search found: task `{record.task}`, study `{record.study}`. "
        f'`mlflow.pyfunc.load_model("{SCHEME}{name}/1").predict(measurements)` gives images; '
        f"`dipa-bench reconstruct {SCHEME}{name}` does so with a picture, beside the study."
    )


def find_model(uri: str, model: str) -> str:
    """The run behind a registered model.

    Args:
        uri: a resolved tracking address.
        model: ``models:/NAME``, for its newest version, or ``models:/NAME/VERSION``,
            ``models:/NAME/latest``, ``models:/NAME@ALIAS``.

    Returns:
        The run's id.

    Raises:
        UserError: there is no such model or version.
        StoreUnavailable: nothing answers at `uri`.
    """
    name, _, version = model.removeprefix(SCHEME).partition("/")
    name, _, alias = name.partition("@")
    missing = UserError(
        f"no registered model {model!r} in {redacted(uri)}: see its page Models (`dipa-bench ui`), "
        "or name another store with --tracking-uri"
    )

    def chosen(client: MlflowClient) -> ModelVersion:
        if alias:
            return client.get_model_version_by_alias(name, alias)
        if version not in ("", "latest"):
            return client.get_model_version(name, version)
        numbers = [int(one.version) for one in client.search_model_versions(f"name = '{name}'")]
        return client.get_model_version(name, str(max(numbers, default=0)))

    return asked(uri, chosen, missing).run_id
