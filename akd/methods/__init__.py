"""Distillation methods, one file each; README.md lists them with paper and formula."""

from akd.methods import kd as kd  # registers itself
from akd.methods import none as none  # registers itself
from akd.methods.base import Method, MethodConfig, Shapes, create_method, hosts
from akd.methods.target import hard_target_loss, soft_target

__all__ = ["Method", "MethodConfig", "Shapes", "create_method", "hard_target_loss", "hosts", "soft_target"]
