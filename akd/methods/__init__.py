"""Distillation methods, one file each; README.md lists them with paper and formula."""

from akd.methods import amd as amd  # registers itself
from akd.methods import angular_kd as angular_kd  # registers itself
from akd.methods import at as at  # registers itself
from akd.methods import crd as crd  # registers itself
from akd.methods import dist as dist  # registers itself
from akd.methods import dkd as dkd  # registers itself
from akd.methods import fitnet as fitnet  # registers itself
from akd.methods import kd as kd  # registers itself
from akd.methods import mlkd as mlkd  # registers itself
from akd.methods import none as none  # registers itself
from akd.methods import pkt as pkt  # registers itself
from akd.methods import reviewkd as reviewkd  # registers itself
from akd.methods import rkd as rkd  # registers itself
from akd.methods import skd as skd  # registers itself
from akd.methods import sp as sp  # registers itself
from akd.methods import vid as vid  # registers itself
from akd.methods.base import Method, MethodConfig, Shapes, TeacherViews, hosts, views
from akd.methods.compose import WithViews, create_method, soft_weight
from akd.methods.target import embedding_target, hard_target_loss, soft_target

__all__ = [
    "Method",
    "MethodConfig",
    "Shapes",
    "TeacherViews",
    "WithViews",
    "create_method",
    "embedding_target",
    "hard_target_loss",
    "hosts",
    "soft_target",
    "soft_weight",
    "views",
]
