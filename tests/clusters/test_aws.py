"""``clusters/aws.yaml`` against a simulated EC2: what Ray would make of it, and who would have to be allowed that."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).parents[2]
WORKERS = {"spot_l4", "spot_a10g", "spot_t4", "on_demand_t4"}


@dataclass
class Machine:
    """One machine, as it was when it ran."""

    type: str
    lifecycle: str | None
    profile: str
    disks_encrypted: list[bool]
    state_at_end: str = ""


@dataclass
class Cloud:
    """What there was, and which calls were made: by the user, by the head."""

    calls: dict[str, set[str]] = field(default_factory=lambda: {"user": set(), "head": set(), "test": set()})
    machines: dict[str, Machine] = field(default_factory=dict)
    groups: list[Any] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    caller: str = "test"

    @contextlib.contextmanager
    def called_by(self, who: str) -> Iterator[None]:
        self.caller = who
        yield
        self.caller = "test"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Cloud:
    """The user starts the head, and the head one worker of every type; then all are taken down."""
    moto = pytest.importorskip("moto")
    import botocore.client

    found = Cloud()
    call = botocore.client.BaseClient._make_api_call

    def noted(self: Any, operation: str, arguments: Any) -> Any:
        found.calls[found.caller].add(f"{self.meta.service_model.service_name}:{operation}")
        return call(self, operation, arguments)

    with pytest.MonkeyPatch.context() as patch, moto.mock_aws():
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # Ray keeps the key of ssh there
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            patch.setenv(name, "simulated")
        patch.delenv("AWS_PROFILE", raising=False)
        patch.setattr(botocore.client.BaseClient, "_make_api_call", noted)
        _start_and_end(found)
    return found


def _start_and_end(cloud: Cloud) -> None:
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((CHECKOUT / "clusters" / "aws.yaml").read_text(encoding="utf-8")))
    region = config["provider"]["region"]
    for profile in ("akd-head", "akd-worker"):
        boto3.client("iam", region).create_instance_profile(InstanceProfileName=profile)
    with cloud.called_by("user"):
        config = AWSNodeProvider.fillout_available_node_types_resources(config)
        validate_config(config)
        cloud.config = config = bootstrap_aws(config)
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    nodes = {name: each["node_config"] for name, each in config["available_node_types"].items()}
    started = {}
    for name in sorted(nodes, key=lambda n: n != "head"):
        kind = "head" if name == "head" else "worker"
        with cloud.called_by("user" if name == "head" else "head"):
            (started[name],) = provider.create_node(nodes[name], {"ray-node-type": kind}, 1).values()
            provider.non_terminated_nodes({})
            provider.set_node_tags(started[name].id, {"ray-node-status": "up-to-date"})
        cloud.machines[name] = _machine(started[name])
    ec2 = boto3.client("ec2", region)
    cloud.groups = ec2.describe_security_groups(GroupIds=nodes["head"]["SecurityGroupIds"])["SecurityGroups"]
    for who, names in (("head", WORKERS), ("user", {"head"})):
        with cloud.called_by(who):
            provider.terminate_nodes([started[name].id for name in names])
    for name, instance in started.items():
        instance.reload()
        cloud.machines[name].state_at_end = instance.state["Name"]


def _machine(instance: Any) -> Machine:
    instance.reload()
    profile = instance.iam_instance_profile["Arn"].rpartition("/")[2]
    disks = [volume.encrypted for volume in instance.volumes.all()]
    return Machine(instance.instance_type, instance.instance_lifecycle, profile, disks)


def test_head_is_on_demand_and_workers_are_spot_of_several_types(cloud: Cloud) -> None:
    assert set(cloud.machines) == {"head", *WORKERS}
    assert {n: m.lifecycle == "spot" for n, m in cloud.machines.items()} == {
        n: n.startswith("spot") for n in cloud.machines
    }
    assert len({m.type for m in cloud.machines.values() if m.lifecycle == "spot"}) == 3
    assert [t["resources"]["GPU"] for t in cloud.config["available_node_types"].values()] == [1] * 5


def test_every_machine_has_its_profile_and_an_encrypted_disk(cloud: Cloud) -> None:
    for name, machine in cloud.machines.items():
        assert machine.profile == ("akd-head" if name == "head" else "akd-worker")
        assert machine.disks_encrypted == [True]
        # A program that forwards requests cannot ask for the profile's keys.
        node = cloud.config["available_node_types"][name]["node_config"]
        assert node["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}


def test_only_ssh_is_open_to_others(cloud: Cloud) -> None:
    (group,) = cloud.groups
    opened = [
        rule for rule in group["IpPermissions"] if rule["IpRanges"] or rule["Ipv6Ranges"] or rule["PrefixListIds"]
    ]
    assert [(rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) for rule in opened] == [("tcp", 22, 22)]
    inside = [pair["GroupId"] for rule in group["IpPermissions"] for pair in rule["UserIdGroupPairs"]]
    assert inside == [group["GroupId"]]
    nodes = [t["node_config"] for t in cloud.config["available_node_types"].values()]
    assert all(node["SecurityGroupIds"] == [group["GroupId"]] for node in nodes)


def test_nothing_is_left_stopped(cloud: Cloud) -> None:
    assert {m.state_at_end for m in cloud.machines.values()} == {"terminated"}


def policies() -> dict[str, list[dict[str, Any]]]:
    """The statements of each policy in the README, by its file's name."""
    text = (CHECKOUT / "clusters" / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^`(\w+\.json)`: .*?```json\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    return {name: json.loads(policy)["Statement"] for name, policy in found}


def actions(statements: list[dict[str, Any]]) -> set[str]:
    lists = [s["Action"] if isinstance(s["Action"], list) else [s["Action"]] for s in statements]
    return {action for each in lists for action in each}


def test_the_policies_allow_what_is_done(cloud: Cloud) -> None:
    allowed = {name: actions(statements) for name, statements in policies().items()}
    assert set(allowed) == {"user.json", "head.json", "worker.json"}
    assert cloud.calls["head"] == {
        "ec2:RunInstances",
        "ec2:CreateTags",
        "ec2:DescribeInstances",
        "ec2:TerminateInstances",
    }
    assert cloud.calls["head"] <= allowed["head.json"]
    assert cloud.calls["user"] <= allowed["user.json"]
    for name in ("user.json", "head.json"):  # the machines' profiles, and the image by its name
        assert {"iam:PassRole", "ssm:GetParameters"} <= allowed[name]


def test_the_policies_allow_little_more(cloud: Cloud) -> None:
    extra = {"iam:PassRole", "ssm:GetParameters"}
    stored = {"s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"}
    found = policies()
    assert actions(found["worker.json"]) == stored
    assert actions(found["head.json"]) == cloud.calls["head"] | extra | stored
    assert actions(found["user.json"]) == cloud.calls["user"] | extra
    for name, statements in found.items():
        for statement in statements:
            assert "*" not in "".join(sorted(actions([statement]))), name
            # Without limits only what reads.
            if statement["Resource"] == "*":
                assert all(a.startswith("ec2:Describe") for a in actions([statement])), name
            limits = statement.get("Condition", {}).get("StringEquals", {})
            named = {value for key, value in limits.items() if key.endswith("/ray-cluster-name")}
            assert named <= {cloud.config["cluster_name"]}, name
            if "ec2:TerminateInstances" in actions([statement]):
                assert named, name
            if statement["Action"] == "iam:PassRole":
                assert statement["Condition"] == {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}
