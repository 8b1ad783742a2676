"""Meshes of devices, and policies that lay arrays out over them."""

from fulmen.devices import partition_methods  # for its methods of `partition`
from fulmen.devices.array_layouts import layouts
from fulmen.devices.meshes import mesh
from fulmen.devices.policies import FSDP, Policy, Replicated, TensorParallel

__all__ = ["FSDP", "Policy", "Replicated", "TensorParallel", "layouts", "mesh"]
