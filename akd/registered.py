"""The champion in MLflow's registry: a logged model that MLflow loads and serves, a version of it, the alias.

    models:/akd-<data>-<student>/3           a version for each study; its tags say what it was chosen by
    models:/akd-<data>-<student>@champion    the best of them on the same validation images

The model takes pictures of 0..1 and gives logits (:class:`akd.handed.Handed`), saved as a program of torch.export, so
that neither akd nor a pickle is needed to load it. Everything is looked for before it is made: doing it again, after
whatever kill, changes nothing, and a version that was judged is not judged again.
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from akd.errors import reason
from akd.folder import Run
from akd.provenance import data_of
from akd.terminal import percent
from akd.tracked import mark_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

ALIAS = "champion"
_ABOUT = (
    "Champions of akd studies. A version takes pictures [N, C, H, W], float32 of 0..1, and gives logits; its "
    f"normalisation is inside. The alias {ALIAS} is at the version that was best on validation images, compared within "
    "the same data and split only: the tag akd.alias of a version says how it was judged."
)


@dataclass(frozen=True)
class Registered:
    """What became of a champion.

    Attributes:
        model: name of the registered model.
        version: of it.
        alias: in words, whether the alias moved to the version, and why.
        model_id: of the logged model; empty where there is none.
        problem: why there is none.
    """

    model: str
    version: str
    alias: str
    model_id: str = ""
    problem: str = ""

    def words(self) -> str:
        """``akd-digits-resnet8 version 3; alias champion moved from version 1 (...)``."""
        return f"{self.model} version {self.version}; alias {ALIAS} {self.alias}"


class Registration:
    """Registers a final run's student; called again until nothing raises, it makes what is still missing.

    Args:
        study: its folder.
        folder: the final run's.
        name: of the registered model.
        accuracy: of the trial it comes from, on the validation images: what versions are compared by.
    """

    def __init__(self, study: Path, folder: Path, name: str, accuracy: float | None):
        run = Run.read(folder)
        assert run is not None
        self.study, self.folder, self.name, self.accuracy, self.run = study, folder, name, accuracy, run
        self.mark, self.data = mark_of(study, folder, run), data_of(study)
        self._built: tempfile.TemporaryDirectory[str] | None = None
        self._problem = ""

    def __call__(self, client: MlflowClient, experiment_id: str, run_id: str, parent_id: str) -> Registered:
        """Bring MLflow in line; raises whatever MLflow raises.

        Args:
            run_id: of the final run.
            parent_id: of the study's run, whose tag ``akd.registered`` says what became of it.
        """
        model = self._logged_model(client, experiment_id, run_id)
        version = self._version(client, run_id, model)
        if model is not None:
            versions = json.dumps([{"name": self.name, "version": version.version}])
            client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": versions})
        alias = version.tags.get("akd.alias") or self._judge(client, version)
        model_id = model.model_id if model is not None else ""
        found = Registered(self.name, str(version.version), alias, model_id, self._problem)
        client.set_tag(parent_id, "akd.registered", found.words())
        client.set_tag(run_id, "akd.registered", found.words())
        return found

    # -- the logged model --------------------------------------------------------------------------

    def _logged_model(self, client: MlflowClient, experiment_id: str, run_id: str) -> LoggedModel | None:
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus

        model = marked(client, experiment_id, self.mark)
        if model is None or model.status != LoggedModelStatus.READY:
            saved = self._saved()
            if saved is None:
                return None
            tags = {"akd.mark": self.mark, "akd.kind": ALIAS, "akd.study": self.study.name}
            model = model or client.create_logged_model(
                experiment_id, self.name, run_id, tags, self._facts(), model_type="student"
            )
            _address(saved, model, run_id)
            client.log_model_artifacts(model.model_id, str(saved))
            model = client.finalize_logged_model(model.model_id, "READY")
        outputs = client.get_run(run_id).outputs
        if not any(o.model_id == model.model_id for o in (outputs.model_outputs if outputs else [])):
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        self._measure(client, run_id, model.model_id)
        if self._built is not None:
            self._built.cleanup()
            self._built = None
        return model

    def _saved(self) -> Path | None:
        """A folder with the model as MLflow wants it, made once; ``None`` if this network cannot be made into one."""
        if self._built is None and not self._problem:
            built = tempfile.TemporaryDirectory(prefix="akd-model-")
            try:
                save(self.folder / "student", Path(built.name) / "model")
                self._built = built
            except Exception as error:  # whatever torch.export says of a network that is not akd's
                built.cleanup()
                if isinstance(error, OSError):  # a disk that is full: later it may have room
                    raise
                self._problem = reason(error)
        return Path(self._built.name) / "model" if self._built is not None else None

    def _facts(self) -> dict[str, str]:
        config = json.loads((self.folder / "student" / "config.json").read_text(encoding="utf-8"))
        values = {"student": config["model"], "classes": config["num_classes"], "input": "0..1, normalised inside"}
        return {key: str(value) for key, value in values.items()}

    def _measure(self, client: MlflowClient, run_id: str, model_id: str) -> None:
        """The run's test figures once more as the model's, as MLflow's list of models shows them."""
        from mlflow.entities import Metric

        part = self.data["parts"]["test"] if self.data else None
        about = {"dataset_name": self.data["name"], "dataset_digest": part["digest"]} if self.data and part else {}
        at = int((self.run.ended or 0) * 1000)
        metrics = [Metric(k, v, at, 0, model_id=model_id, run_id=run_id, **about) for k, v in self.run.results.items()]
        if metrics:
            client.log_batch(run_id, metrics=metrics)

    # -- the version and the alias -----------------------------------------------------------------

    def _version(self, client: MlflowClient, run_id: str, model: LoggedModel | None) -> ModelVersion:
        from mlflow.exceptions import MlflowException

        try:
            client.create_registered_model(self.name, description=_ABOUT)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = [v for v in client.search_model_versions(f"name='{self.name}'") if v.run_id == run_id]
        if known:
            return client.get_model_version(self.name, known[0].version)
        tags = {"akd.study": self.study.name, "akd.mark": self.mark}
        if self.accuracy is not None:
            tags["akd.val_accuracy"] = repr(float(self.accuracy))
        if self.data is not None:
            tags["akd.data_hash"] = self.data["hash"]
        if (test := self.run.results.get("test/accuracy")) is not None:
            tags["akd.test_accuracy"] = repr(float(test))
        if model is None:
            source = f"{client.get_run(run_id).info.artifact_uri}/student"
            return client.create_model_version(self.name, source, run_id, tags=tags)
        # By its place, not as models:/ID, which MLflow would look up in the store of its global address.
        return client.create_model_version(
            self.name, model.artifact_location, run_id, tags=tags, model_id=model.model_id
        )

    def _judge(self, client: MlflowClient, version: ModelVersion) -> str:
        """Move the alias if the version is better than the one that has it; say what was done."""
        holder = _holder(client, self.name)
        if holder is None or str(holder.version) == str(version.version):
            moves, words = holder is None, "is set to it"
        else:
            moves, words = compare(version.tags, holder.tags, holder.version)
        if moves:
            client.set_registered_model_alias(self.name, ALIAS, str(version.version))
        client.set_model_version_tag(self.name, str(version.version), "akd.alias", words)
        return words


def compare(mine: dict[str, str], theirs: dict[str, str], holder: object) -> tuple[bool, str]:
    """Whether the alias moves from version ``holder`` to another, by the tags of both; and why, in words."""
    stays = f"stays at version {holder}"
    if "akd.val_accuracy" not in theirs or "akd.data_hash" not in theirs:
        return False, f"{stays}, of which no validation accuracy is known"
    if "akd.val_accuracy" not in mine or "akd.data_hash" not in mine:
        return False, f"{stays}: of this one no validation accuracy is known"
    if mine["akd.data_hash"] != theirs["akd.data_hash"]:
        return False, f"{stays}, which was chosen on other validation images"
    new, old = float(mine["akd.val_accuracy"]), float(theirs["akd.val_accuracy"])
    told = f"{percent(old)} % on the same validation images, this one {percent(new)} %"
    if new > old:
        return True, f"moved from version {holder} ({told})"
    return False, f"{stays} ({told})"


def _holder(client: MlflowClient, name: str) -> ModelVersion | None:
    """The version that has the alias."""
    from mlflow.exceptions import MlflowException

    if ALIAS not in client.get_registered_model(name).aliases:
        return None
    try:
        return client.get_model_version_by_alias(name, ALIAS)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def marked(client: MlflowClient, experiment_id: str, mark: str) -> LoggedModel | None:
    """The logged model with the tag ``akd.mark``."""
    found = client.search_logged_models([experiment_id], filter_string=f"tags.`akd.mark` = '{mark}'", max_results=1)
    return found[0] if found else None


def save(student: Path, place: Path) -> None:
    """Write a student that was handed over as a model of MLflow's flavour ``pytorch``.

    Args:
        student: folder with ``student.safetensors`` and ``config.json``.
        place: a folder that is not there yet.
    """
    import numpy as np
    import torch
    from mlflow.models import Model
    from mlflow.models.signature import ModelSignature
    from mlflow.types import Schema, TensorSpec

    from akd.handed import load_handed
    from akd.teacher.keep import read_config

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    import mlflow.pytorch

    config, handed = read_config(student), load_handed(student)
    shape = (int(config["in_channels"]), *(int(n) for n in config["image_size"]))
    # Two images, or torch.export takes the batch for one of one. Drawn: nobody's pictures leave the machine. In
    # quarters, which are short in JSON.
    example = np.random.default_rng(0).integers(0, 5, (2, *shape)).astype(np.float32) / 4
    images, logits = (-1, *shape), (-1, int(config["num_classes"]))
    # Without names: a server would hand a named input to torch as a mapping, which it does not take.
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("float32"), images)]), Schema([TensorSpec(np.dtype("float32"), logits)])
    )
    torch_version = torch.__version__.partition("+")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pytorch.save_model(
            handed,
            str(place),
            mlflow_model=Model(),
            signature=signature,
            input_example=example,
            serialization_format="pt2",
            # Said here: MLflow would load the model in another process to find them.
            pip_requirements=[f"mlflow=={mlflow.__version__}", f"torch=={torch_version}", f"numpy=={np.__version__}"],
        )


def _address(saved: Path, model: LoggedModel, run_id: str) -> None:
    """Write into a saved model whose it is."""
    from mlflow.models import Model

    entry: Any = Model.load(str(saved))
    entry.model_id = entry.model_uuid = model.model_id
    entry.artifact_path, entry.run_id = model.artifact_location, run_id
    entry.save(str(saved / "MLmodel"))
