"""The methods of `partition` for the library's layers."""

from __future__ import annotations

from fulmen.compose.population import Population
from fulmen.core.verbs import partition
from fulmen.devices.policies import Axes, Policy
from fulmen.dispatching.registry import dispatch
from fulmen.models.attention import Attention
from fulmen.models.chain import Chain, Function
from fulmen.models.convolution import Convolution
from fulmen.models.layers import Dense, Dropout
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


# Layers are split over the policy's axis for them, if it has one that divides their sizes; other arrays are left to the policy.


@dispatch
def partition(layer: Dense, policy):
    return _by_outputs(layer, policy)


def _by_outputs(layer: Dense, policy: Policy, name: str = "") -> dict[str, Axes]:
    axis = policy.axis_for(layer.out_features)
    return {f"{name}weight": (None, axis), f"{name}bias": (axis,)} if axis else {}


@dispatch
def partition(layer: Convolution, policy):
    axis = policy.axis_for(layer.out_channels)
    return {"weight": (*(None,) * (layer.dimensions + 1), axis), "bias": (axis,)} if axis else {}


@dispatch
def partition(layer: Embedding, policy):
    # By tokens if possible, so that a last layer with the same weights is split by its outputs.
    if axis := policy.axis_for(layer.count):
        return {"weight": (axis,)}
    axis = policy.axis_for(layer.features)
    return {"weight": (None, axis)} if axis else {}


@dispatch
def partition(layer: Attention, policy):
    axis = policy.axis_for(layer.heads)
    if axis is None:
        return {}
    return {"qkv.weight": (None, axis), "qkv.bias": (axis,), "out.weight": (axis,), "out.bias": ()}


@dispatch
def partition(chain: Chain, policy):
    """Linear maps with only elementwise layers between them in pairs: the first by outputs, the second by inputs.

    The devices then communicate once for each pair.
    """
    axes, first = {}, None
    for i, layer in enumerate(chain.layers):
        if isinstance(layer, Dense):
            axis = policy.axis_for(layer.in_features) if first else None
            pair = {f"layers.{i}.weight": (axis,), f"layers.{i}.bias": ()} if axis else {}
            axes |= pair or _by_outputs(layer, policy, f"layers.{i}.")
            first = None if pair else layer
        elif not isinstance(layer, Function | Dropout):
            first = None
    return axes
