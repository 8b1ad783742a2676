"""The methods of `partition` for the library's layers."""

from __future__ import annotations

from fulmen.compose.population import Population
from fulmen.core.verbs import partition
from fulmen.devices.policies import TensorParallel
from fulmen.dispatching.registry import dispatch
from fulmen.models.attention import Attention
from fulmen.models.chain import Chain, Function
from fulmen.models.layers import Conv, Dense, Dropout
from fulmen.models.stacked import Stacked
from fulmen.models.vector_tables import Embedding


@dispatch
def partition(component: object, policy):
    return {}


@dispatch
def partition(stack: Stacked, policy):
    return {"blocks": (None,)}  # a loop takes one block after the other, so each device needs a part of every block


@dispatch
def partition(population: Population, policy):
    fits = "members" in policy.mesh.shape and population.n % policy.size("members") == 0
    return {"members": ("members" if fits else None,)}


@dispatch
def partition(layer: Dense, policy: TensorParallel):
    return _by_outputs(layer, policy)


def _by_outputs(layer: Dense, policy: TensorParallel, name: str = "") -> dict[str, tuple[str | None, ...]]:
    axis = policy.axis_for(layer.out_features)
    return {f"{name}weight": (None, axis), f"{name}bias": (axis,)}


@dispatch
def partition(layer: Conv, policy: TensorParallel):
    axis = policy.axis_for(layer.out_channels)
    return {"weight": (None, None, None, axis), "bias": (axis,)}


@dispatch
def partition(layer: Embedding, policy: TensorParallel):
    # By tokens, so that a last layer with the same weights is split by its outputs.
    tokens = policy.axis_for(layer.count)
    return {"weight": (tokens,) if tokens else (None, policy.axis_for(layer.features))}


@dispatch
def partition(layer: Attention, policy: TensorParallel):
    axis = policy.axis_for(layer.heads)
    return {"qkv.weight": (None, axis), "qkv.bias": (axis,), "out.weight": (axis,), "out.bias": ()}


@dispatch
def partition(chain: Chain, policy: TensorParallel):
    """Linear maps with only elementwise layers between them in pairs: the first by outputs, the second by inputs.

    The devices then communicate once for each pair.
    """
    axes, first = {}, None
    for i, layer in enumerate(chain.layers):
        if isinstance(layer, Dense):
            name = f"layers.{i}."
            if first is not None and (axis := policy.axis_for(layer.in_features)):
                axes |= {f"{name}weight": (axis,), f"{name}bias": ()}
                first = None
            else:
                axes |= _by_outputs(layer, policy, name)
                first = layer
        elif not isinstance(layer, Function | Dropout):
            first = None
    return axes
