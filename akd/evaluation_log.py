"""What ``akd evaluate`` found, in MLflow: a run for each network, beside the study it comes from."""

from __future__ import annotations

import getpass
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from akd.errors import AkdError
from akd.folder import Run
from akd.logged import default_uri, experiment_title, scrubbed
from akd.provenance import origin as code
from akd.summary import program, shown_path
from akd.tracked import shared_tags
from akd.tracking_store import connect

if TYPE_CHECKING:
    from akd.evaluate_verb import Report
    from akd.evaluation import Network


#: Metrics that final runs have as well.
CALLED = {"top1": "accuracy", "nll": "loss"}


def origin(network: Network, data: str) -> tuple[str, dict[str, str]]:
    """The experiment a network's evaluation belongs to, and tags that say which run made the network.

    A student of a study on the same data belongs to the study's experiment; every other one to the data's own.
    """
    elsewhere = f"{data}: evaluation"
    if network.folder is None:
        return elsewhere, {}
    folder = network.folder.absolute()
    tags = {"akd.folder": str(folder)}
    for above in (folder, *folder.parents[:3]):
        if not (above / "experiment.yaml").is_file():
            continue
        config = yaml.safe_load((above / "experiment.yaml").read_text(encoding="utf-8"))
        names = [config.get(part, {}).get("name") for part in ("data", "teacher", "student")]
        if above.parent.name == "teachers":  # a teacher may serve several studies
            return elsewhere, tags
        study = None
        if above.parent.name in ("finals", "trials", "controls"):
            study = above.parent.parent
            tags |= {"akd.study": study.name, "akd.run": above.name}
        elif (above / "trials").is_dir() or (above / "finals").is_dir():
            study = above
            tags |= {"akd.study": above.name, "akd.run": folder.name}
        if study is not None and (own := Run.read(study)) is not None:  # it may have searched for the student, too
            names[2] = own.tags.get("students", names[2])
        return (experiment_title(*names) if names[0] == data and all(names) else elsewhere), tags
    return elsewhere, tags


def log(report: Report, tracking_uri: str | None, output: Path) -> list[str]:
    """Write a run for each network, with metrics ``test/<metric>``; those a final run has too are called as there.

    Args:
        tracking_uri: default ``$MLFLOW_TRACKING_URI``, else the store under ``output``.

    Returns:
        A line for each run: where it is; and what shows them.

    Raises:
        AkdError: MLflow did not take it; in one line, without credentials.
    """
    output = output.absolute()
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(output)
    lines, study = [], ""
    try:
        for at, network in enumerate(report.networks):
            experiment, tags = origin(network, report.data)
            study = study or tags.get("akd.study", "")
            run = _write(report, at, uri, output, experiment, tags)
            lines.append(f"MLflow run {run}: {report.titles[at]}, in {experiment!r}")
    except Exception as error:  # whatever MLflow, the network or the disk raises
        reason = scrubbed(str(error).splitlines()[0], uri)[:200] if str(error) else type(error).__name__
        raise AkdError(f"MLflow did not take the evaluation: {reason}") from None
    if "://" in uri and not uri.startswith("sqlite:"):
        return [*lines, f"to be seen at {scrubbed(uri)}"]
    words = [program(), "ui", *([study] if study else [])]
    words += ["--output", shown_path(output)] if output != Path("runs").absolute() else []
    return [*lines, f"to be seen with: {' '.join(words)}"]


def _write(report: Report, at: int, uri: str, output: Path, experiment: str, tags: dict[str, str]) -> str:
    client, experiment_id = connect(uri, output, experiment)
    from mlflow.entities import Metric, Param

    network, now = report.networks[at], int(time.time() * 1000)
    tags = {
        "akd.kind": "evaluation",
        "akd.status": "COMPLETE",
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": "akd",
        **shared_tags(code()),
        **tags,
    }
    name = f"evaluation of {report.titles[at]}"
    run_id = client.create_run(experiment_id, start_time=now, tags=tags, run_name=name).info.run_id
    facts = {"data": report.data, "model": network.name, **report.settings}
    params = [Param(key, str(value)[:6000]) for key, value in facts.items()]
    metrics = [Metric(f"test/{CALLED.get(key, key)}", value, now, 0) for key, value in report.scores[at].items()]
    client.log_batch(run_id, metrics=metrics, params=params)
    client.set_terminated(run_id, "FINISHED")
    return str(run_id)
