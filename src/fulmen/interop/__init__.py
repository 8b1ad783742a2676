"""Types of other libraries, taught to the verbs: each file is loaded when a type of its library is first seen."""

from fulmen.dispatching.lazy_libraries import explain_unknown, load_when_met

load_when_met("equinox.", "fulmen.interop.equinox")
load_when_met("flax.nnx.", "fulmen.interop.nnx")
explain_unknown(
    {
        "flax": "A Linen module holds no arrays: give it with an example of its inputs, fm.Linen(module, x[:1]).",
        "haiku": "A Haiku module is used inside a function: fm.functional(*hk.transform(function), x[:1]).",
        "keras": "A Keras model is functions of its variables: fm.functional(init, apply), with model.stateless_call in apply.",
        "torch": "A PyTorch module holds no JAX arrays: write it in JAX, Equinox or Flax, and copy its arrays.",
    }
)
