"""The cluster files: what Ray says of their form, and what must be true of every one of them. Starts nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

from akd.places import coming

CHECKOUT = Path(__file__).parents[2]
FOLDER = CHECKOUT / "clusters"
LAUNCHED = ["aws", "gcp", "onprem"]


def load(name: str) -> dict[str, Any]:
    return next(iter(yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))))


def commands(cluster: dict[str, Any]) -> str:
    """All that is run on nodes."""
    return "\n".join(line for key, lines in cluster.items() if key.endswith("_commands") for line in lines)


def test_every_file_is_tested() -> None:
    assert {p.stem for p in FOLDER.glob("*.yaml")} == {*LAUNCHED, "kuberay"}


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_takes_the_file(name: str) -> None:
    prepared = prepare_config(load(name))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]


def test_ray_refuses_a_misspelled_key() -> None:
    """The validator does look."""
    import jsonschema

    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(load("aws") | {"idle_timeout": 3}))


def test_kuberay_takes_the_file() -> None:
    cluster, claim = yaml.safe_load_all((FOLDER / "kuberay.yaml").read_text(encoding="utf-8"))
    found = _derive_autoscaling_config_from_ray_cr(cluster)  # validates what it makes
    head = found["available_node_types"][found["head_node_type"]]
    assert (head["resources"]["CPU"], head["resources"]["GPU"]) == (4, 1)
    assert found["max_workers"] == 0
    assert found["idle_timeout_minutes"] == 10
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert cluster["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    pods = [g["template"]["spec"] for g in (cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"])]
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        mounted = {m["name"] for m in container["volumeMounts"]}
        assert mounted == {v["name"] for v in pod["volumes"]}
    claims = [v["persistentVolumeClaim"]["claimName"] for v in pods[0]["volumes"] if "persistentVolumeClaim" in v]
    assert claims == [claim["metadata"]["name"]]


@pytest.mark.parametrize("name", LAUNCHED)
def test_nodes_get_the_package_and_nothing_else(name: str) -> None:
    cluster = load(name)
    mounts = {remote: local for remote, local in cluster["file_mounts"].items() if remote != "~/.ray/auth_token"}
    assert mounts == {f"~/akd-src/{local}": local for local in mounts.values()}
    for local in mounts.values():
        assert (CHECKOUT / local).exists()
    # All that the build reads: a missing file would stop 'ray up'.
    project = (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")
    for needed in ("README.md", "LICENSE", "search_spaces"):
        assert f'"{needed}"' in project
        assert needed in mounts.values()
    # Nowhere may a folder called akd lie in the home folder, where 'ray submit' starts its script.
    assert "~/akd" not in cluster["file_mounts"]
    assert "--editable ~/akd-src" in commands(cluster)


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_token_is_asked_for_and_the_address_is_known(name: str) -> None:
    cluster = load(name)
    text = commands(cluster)
    assert "RAY_AUTH_MODE=token" in text
    assert "RAY_ADDRESS=auto" in text
    made = "ray get-auth-token --generate > /dev/null" in text and "umask 077" in text
    assert made or cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    heads = [c for c in cluster["head_start_ray_commands"] if "ray start" in c]
    assert len(heads) == 1
    assert "--dashboard-host=127.0.0.1" in heads[0]


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_no_secret_is_written_down_and_nothing_is_open(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(
        r"AKIA|ASIA|BEGIN [A-Z ]*PRIVATE KEY|password|secret_access|aws_credentials|gcp_credentials", text
    )
    assert not re.search(r"\b[0-9a-f]{32,}\b", text)
    assert not re.search(r"--(dashboard-)?host[= ]0\.0\.0\.0", text)


@pytest.mark.parametrize("name", ["aws", "gcp", "kuberay"])
def test_the_image_holds_a_ray_that_akd_runs_with(name: str) -> None:
    """One version everywhere: of the image, of what is installed into it, and within what akd asks for."""
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    versions = set(re.findall(r"rayproject/ray:(\S+)-py311-gpu", text)) | set(re.findall(r"train\]==([\d.]+)", text))
    assert len(versions) == 1
    project = (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")
    asked = Requirement(json.loads(re.search(r'"ray\[[^"]*"', project)[0]))  # type: ignore[index]
    assert Version(versions.pop()) in asked.specifier


def test_workers_are_started_only_where_nodes_share_storage() -> None:
    """Several nodes are refused without it: workers would cost and stay idle."""
    for name in LAUNCHED:
        cluster = prepare_config(load(name))
        shared = "export AKD_STORAGE=s3://$AKD_BUCKET/" in commands(cluster)
        assert (cluster["max_workers"] > 0) == shared == (name == "aws")
        assert cluster.get("min_workers", 0) == 0


def test_a_search_on_aws_knows_how_many_workers_may_come(tmp_path: Path) -> None:
    cluster = prepare_config(load("aws"))
    (line,) = [c for c in cluster["head_setup_commands"] if "AKD_CLUSTER_FILE" in c]
    assert "AKD_CLUSTER_FILE=~/ray_bootstrap_config.yaml" in line
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in commands(cluster)
    assert "AKD_CLUSTER_FILE" not in "".join(cluster["setup_commands"])  # workers start nothing
    for kind in cluster["available_node_types"].values():  # as Ray asks EC2 for them, see test_aws.py
        kind["resources"] = {"CPU": 4, "GPU": 1}
    (tmp_path / "file").write_text(yaml.safe_dump(cluster))
    assert len(coming(tmp_path / "file", 0)) == 8
    assert len(coming(tmp_path / "file", 3)) == 5
