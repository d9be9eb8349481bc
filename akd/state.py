"""What changes during training: networks, method, optimizer, average, histories; saved and loaded as one."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from akd import checkpoint
from akd.config import TrainConfig
from akd.errors import CheckpointError
from akd.methods import Method


class TrainState:
    """Everything that changes during training: student, averaged student, method, optimizer, epochs, histories."""

    def __init__(self, train: TrainConfig, student: nn.Module, method: Method, device: torch.device):
        self.train_config, self.student, self.method = train, student, method
        self.average = copy.deepcopy(student).requires_grad_(False) if train.ema else None
        self.updates = 0
        self.epoch = self.head_epoch = 0
        self.history: list[dict[str, float]] = []
        self.head_history: list[dict[str, float]] = []
        groups = [(list(student.parameters()), 1.0), *method.groups()]
        self.parameters = [p for parameters, _ in groups for p in parameters]
        self.optimizer = torch.optim.SGD(
            [{"params": parameters, "factor": factor} for parameters, factor in groups if parameters],
            lr=train.lr,
            momentum=train.momentum,
            nesterov=train.nesterov,
            weight_decay=train.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )

    @property
    def scored(self) -> nn.Module:
        """The network whose accuracy counts: the averaged one if averaging is on."""
        return self.student if self.average is None else self.average

    def set_lr(self, lr: float) -> None:
        """The student's learning rate of the next step; the method's parameters have theirs in proportion."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]

    def step(self) -> None:
        """One step of the optimizer down the gradients; they are gone afterwards."""
        if self.train_config.grad_clip:
            nn.utils.clip_grad_norm_(self.parameters, self.train_config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def update_average(self) -> None:
        """One step of the exponential moving average; young averages forget faster, so that they start well.

        Parameters are averaged; buffers are the student's own. Batch normalisation's statistics are averages already:
        averaged again they lag so far behind that early epochs, where the scheduler decides, are scored by the lag
        (digits, lr 0.2, epoch 3: 89 % with copied statistics, 74 % with averaged ones).
        """
        if self.average is None:
            return
        self.updates += 1
        # Weights are on average a tenth of all steps so far behind: the same part of a run at each rung, however many
        # steps an epoch has. A fixed decay forgets as much until it is reached.
        decay, ema = (1 + self.updates) / (10 + self.updates), self.train_config.ema
        if ema != "auto":
            decay = min(float(ema), decay)
        # All at once: on a GPU a launch costs more than most of these tensors.
        torch._foreach_lerp_([*self.average.parameters()], [*self.student.parameters()], 1 - decay)
        for kept, current in zip(self.average.buffers(), self.student.buffers(), strict=True):
            kept.copy_(current)

    def save(self, folder: Path, keep: int = 2) -> Path:
        """Write a checkpoint of this state under ``folder``; see :func:`akd.checkpoint.save`."""
        tensors = {f"student.{k}": v for k, v in self.student.state_dict().items()}
        tensors |= {f"method.{k}": v for k, v in self.method.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for i, p in enumerate(self.parameters):
            momentum = self.optimizer.state[p].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{i}"] = momentum
        state = {
            "epoch": self.epoch,
            "head_epoch": self.head_epoch,
            "updates": self.updates,
            "history": self.history,
            "head_history": self.head_history,
        }
        return checkpoint.save(folder, self.epoch, tensors, state, keep, self.head_epoch)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            CheckpointError: damaged, or of another network or method.
        """
        tensors, state = checkpoint.load(path)

        def part(name: str) -> dict[str, Tensor]:
            return {k[len(name) + 1 :]: v for k, v in tensors.items() if k.startswith(name + ".")}

        try:
            self.student.load_state_dict(part("student"))
            self.method.load_state_dict(part("method"))
            if self.average is not None:
                self.average.load_state_dict(part("average"))
        except RuntimeError as error:
            raise CheckpointError(f"{path} belongs to another experiment: {str(error).splitlines()[0]}") from None
        for i, value in part("momentum").items():
            p = self.parameters[int(i)]
            # In the parameter's own layout, which the fused optimizer takes for granted.
            self.optimizer.state[p]["momentum_buffer"] = torch.empty_like(p).copy_(value)
        self.epoch, self.updates, self.history = state["epoch"], state["updates"], state["history"]
        self.head_epoch, self.head_history = state.get("head_epoch", 0), state.get("head_history", [])
