"""The champion of a real search as others use it: loaded by MLflow where there is no akd, and served over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import program
import pytest
import torch
from mlflow import MlflowClient
from server import Server

from akd.handed import load_handed

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(1200)]

LOAD = """
import sys, json, numpy, torch, mlflow.pytorch
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == "akd" or name.startswith("akd."):
            raise ImportError("akd must not be needed")
sys.meta_path.insert(0, Refuse())
model = mlflow.pytorch.load_model(sys.argv[1])
images = torch.from_numpy(numpy.load("images.npy"))
print(json.dumps([model(images).tolist(), model(images[:1]).tolist()]))
"""


def test_loaded_and_served(tmp_path: Path) -> None:
    server = Server(tmp_path, program.free_port())
    server.start(wait=True)
    try:
        search = ["search", "small.yaml", "--name", "s", "--champion-seeds", "1", "--tracking-uri", server.uri]
        code, output = program.run(search, tmp_path)
        assert code == 0, output
        assert "model     akd-digits-resnet8 version 1; alias champion is set to it" in output
        images = np.random.default_rng(3).random((5, 1, 8, 8), dtype=np.float32)
        np.save(tmp_path / "images.npy", images)
        with torch.no_grad():
            wanted = load_handed(tmp_path / "runs" / "s" / "champion")(torch.from_numpy(images)).numpy()
        # A pickle in it would be refused.
        env = os.environ | {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
        model = "models:/akd-digits-resnet8@champion"
        line = [sys.executable, "-c", LOAD, model]
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=300)
        assert done.returncode == 0, done.stderr
        several, one = json.loads(done.stdout.splitlines()[-1])
        np.testing.assert_allclose(several, wanted, atol=1e-4)
        np.testing.assert_allclose(one, wanted[:1], atol=1e-4)
        served(model, images, wanted, env, tmp_path)
        resumed(server, tmp_path)
    finally:
        server.kill()


def served(model: str, images: np.ndarray, wanted: np.ndarray, env: dict[str, str], folder: Path) -> None:
    port = program.free_port()
    line = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
    line += ["--host", "127.0.0.1", "--port", str(port)]
    with open(folder / "serve.txt", "wb") as log:
        process = subprocess.Popen(line, stdout=log, stderr=log, cwd=folder, env=env, start_new_session=True)
    try:
        ping = f"http://127.0.0.1:{port}/ping"
        program.wait_for(lambda: answers(ping), 240, 0.5)
        question = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"inputs": images.tolist()}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(question, timeout=60) as answer:
            found = json.load(answer)["predictions"]
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    finally:
        for pid in program.session_members(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait(30)


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=2).close()
        return True
    except OSError:
        return False


def resumed(server: Server, folder: Path) -> None:
    """The same search again changes nothing: neither models nor versions nor the alias."""
    client = MlflowClient(server.uri)

    def everything() -> tuple[object, ...]:
        (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
        models = client.search_logged_models([experiment.experiment_id])
        versions = client.search_model_versions()
        return (
            sorted((m.model_id, str(m.status)) for m in models),
            [(v.version, v.model_id, sorted(v.tags.items())) for v in versions],
            client.get_registered_model("akd-digits-resnet8").aliases,
        )

    before = everything()
    assert len(before[0]) == 2  # champion and teacher
    code, output = program.run(["search", "--resume", "s", "--tracking-uri", server.uri], folder)
    assert code == 0, output
    assert everything() == before
