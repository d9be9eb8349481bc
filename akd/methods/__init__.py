"""Distillation methods, one file each; README.md lists them with paper and formula."""

from akd.methods import angular_kd as angular_kd  # registers itself
from akd.methods import kd as kd  # registers itself
from akd.methods import mgd as mgd  # registers itself
from akd.methods import none as none  # registers itself
from akd.methods import tekap as tekap  # registers itself
from akd.methods.base import Method, MethodConfig, Shapes, TeacherViews, hosts, views
from akd.methods.compose import WithViews, create_method, soft_weight
from akd.methods.target import hard_target_loss, soft_target

__all__ = [
    "Method",
    "MethodConfig",
    "Shapes",
    "TeacherViews",
    "WithViews",
    "create_method",
    "hard_target_loss",
    "hosts",
    "soft_target",
    "soft_weight",
    "views",
]
