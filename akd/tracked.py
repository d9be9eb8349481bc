"""What a run folder is called in MLflow: its mark, parameters, tags, and the data it was made from.

Nothing here speaks to MLflow; :mod:`akd.tracking` does.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from akd.folder import COMPLETE, FAILED, RUNNING, Run
from akd.methods.base import title
from akd.provenance import data_of
from akd.terminal import short_names

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

#: How MLflow calls the states of a run.
STATUS = {RUNNING: "RUNNING", COMPLETE: "FINISHED", "PRUNED": "FINISHED", FAILED: "FAILED"}
#: Facts of a study that each of its runs carries, too; ``commit`` is MLflow's own tag beside.
_SHARED = ("commit", "commit_of", "uncommitted_changes", "command")
#: What a run's own facts hold that MLflow has elsewhere, or that is of this machine alone.
HIDDEN = ("tracking", "storage", "seconds", "threads", "workers")
#: What an epoch's entry holds for the accounts of the study alone. MLflow's pages draw a chart for each metric, and are
#: slow from thirty on.
_ACCOUNTS = ("epoch", "at", "time/teacher_asked", "time/teacher_images", "time/images_per_s", "time/devices")


def mark_of(study: Path, folder: Path, run: Run) -> str:
    """What tells a folder's run from all others in MLflow, its tag ``akd.mark``; the same after a kill."""
    place = f"teacher/{folder.name}" if run.kind == "teacher" else f"{study.name}/{folder.name}"
    return f"{place}@{int(run.started * 1000)}"


def tags_of(study: Path, folder: Path, run: Run, config: Mapping[str, Any]) -> dict[str, str]:
    """The tags a run is made with, but for its parent's id. To filter by: kind, study, method, status, trial."""
    own = run if folder == study else Run.read(study)
    tags = {
        "akd.mark": mark_of(study, folder, run),
        "akd.kind": run.kind,
        "akd.study": study.name,
        "akd.method": method_of(config),
        "akd.status": run.state,
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": "akd",
        **(shared_tags(own.tags) if own is not None else {}),
        **own_tags(run),
    }
    if run.number is not None:
        tags["akd.trial"] = str(run.number)
    return tags


def shared_tags(facts: Mapping[str, str]) -> dict[str, str]:
    """Of :func:`akd.provenance.origin`: command and commit as tags."""
    tags = {f"akd.{key}": facts[key] for key in _SHARED if key in facts}
    return tags | ({"mlflow.source.git.commit": facts["commit"]} if "commit" in facts else {})


def own_tags(run: Run) -> dict[str, str]:
    """The free facts of a run as tags."""
    facts = {key: text for key, text in run.tags.items() if key not in HIDDEN}
    return {key if key.startswith("mlflow.") else f"akd.{key}": text for key, text in facts.items()}


def numbers_of(run: Run, epochs: int) -> dict[str, float]:
    """Figures of a run to sort and filter by: as tags and parameters are texts, 10 would come before 9."""
    found = {"trial": run.number, "epochs": epochs or None}
    return {key: float(value) for key, value in found.items() if value is not None}


def metrics_of(entry: Mapping[str, float]) -> dict[str, float]:
    """What MLflow gets of an epoch's entry."""
    return {key: float(value) for key, value in entry.items() if key not in _ACCOUNTS}


def method_of(config: Mapping[str, Any]) -> str:
    """The method in words, as :attr:`akd.methods.MethodConfig.title`."""
    method = config["method"]
    views, extra, augment = method.get("views"), method.get("extra") or {}, method.get("augment")
    return title(
        method["host"]["name"],
        views["name"] if views else None,
        extra,
        normalise=method.get("normalise", False),
        augment=augment["name"] if augment else None,
    )


def head_epochs(config: Mapping[str, Any]) -> int:
    """How many head epochs a run has from start to end."""
    return int((config["method"].get("views") or {}).get("head_warmup_epochs", 0))


def learns_from_a_teacher(config: Mapping[str, Any]) -> bool:
    """False of a student alone."""
    method = config["method"]
    return method["host"]["name"] != "none" or bool(method.get("views")) or bool(method.get("extra"))


def first_names(searched: Sequence[str]) -> dict[str, str]:
    """Searched keys -> short names that MLflow, which sorts by name, lists first: ``train.lr`` -> ``_lr``."""
    return {key: f"_{name}" for key, name in short_names(list(searched)).items()}


def params_of(config: Mapping[str, Any], run: Run, searched: Sequence[str] = ()) -> dict[str, str]:
    """A run's parameters as MLflow shows them: what the run is made of, by dotted keys, and the searched values.

    Args:
        searched: all keys of the study's space. A run's values of them have a short name of their own, too, which comes
            first in MLflow's lists, and are rounded there: a column cuts off what is long.
    """
    names = first_names(searched or list(run.parameters))
    params = {
        **{names[k]: f"{v:.4g}" if isinstance(v, float) else v for k, v in run.parameters.items() if k in names},
        "data": config["data"]["name"],
        "teacher": config["teacher"]["name"],
        "student": config["student"]["name"],
        **{f"train.{k}": config["train"][k] for k in ("epochs", "batch_size", "lr", "seed", "plan_seed")},
        **({"train.epoch_factor": factor} if (factor := config["train"].get("epoch_factor", 1)) != 1 else {}),
        **{f"method.host.{k}": v for k, v in config["method"]["host"].items()},
        **{f"method.views.{k}": v for k, v in (config["method"].get("views") or {}).items()},
        **{f"method.augment.{k}": v for k, v in (config["method"].get("augment") or {}).items()},
        **{
            f"method.extra.{name}.{k}": v
            for name, settings in (config["method"].get("extra") or {}).items()
            for k, v in settings.items()
        },
        "method.normalise": config["method"].get("normalise", False),
        **run.parameters,
    }
    if run.kind == "study":
        params |= {f"search.{k}": v for k, v in config["search"].items() if v is not None}
        if "trials_added" in run.tags:  # MLflow takes no other value than the first; a tag has the present one
            del params["search.trials"]
    return {k: str(v) for k, v in params.items()}


#: What a kind of run reads of the data: MLflow's contexts. A final run trains on the validation images, too.
_CONTEXTS = {
    "study": ("training", "validation"),
    "trial": ("training", "validation"),
    "control": ("training", "validation"),
    "confirm": ("training", "validation"),
    "single": ("training", "validation"),
    "teacher": ("training", "validation"),
    "final": ("training and validation", "test"),
}


def dataset_inputs(study: Path, kind: str) -> list[DatasetInput]:
    """The data of a run as MLflow's inputs; none where the study does not say what it reads (one of before that)."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    facts = data_of(study)
    if facts is None:
        return []
    found = []
    for context in _CONTEXTS.get(kind, ("training", "validation")):
        part = facts["parts"][context]
        dataset = Dataset(
            name=facts["name"],
            digest=part["digest"],
            source_type=facts["source_type"],
            source=json.dumps(facts["source"]),
            schema=json.dumps({"mlflow_tensorspec": _schema(facts)}),
            profile=json.dumps({"images": part["images"], "classes": facts["classes"], "split": context}),
        )
        found.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    return found


def _schema(facts: Mapping[str, Any]) -> dict[str, str]:
    """As MLflow writes that of arrays."""
    images = {"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": [-1, *facts["shape"]]}}
    labels = {"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}
    return {"features": json.dumps([images]), "targets": json.dumps([labels])}
