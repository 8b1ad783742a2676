"""Models and data of other libraries: each file registers methods, and is loaded when a type of its library is first used."""

from fulmen.dispatching.lazy_libraries import explain_unknown, load_when_met

load_when_met("equinox.", "fulmen.interop.equinox")
load_when_met("flax.nnx.", "fulmen.interop.nnx")
load_when_met("torch.utils.data.", "fulmen.interop.torch_data")
load_when_met("datasets.arrow_dataset.", "fulmen.interop.datasets_data")
load_when_met("datasets.iterable_dataset.", "fulmen.interop.datasets_data")
load_when_met("datasets.dataset_dict.", "fulmen.interop.datasets_data")
load_when_met("grain._src.python.", "fulmen.interop.grain_data")
load_when_met("tensorflow.python.data.", "fulmen.interop.tensorflow_data")
explain_unknown(
    {
        "flax": "A Linen module holds no arrays: wrap it with an example of its inputs, fm.Linen(module, x[:1]).",
        "haiku": "A Haiku module must be created inside a function: fm.functional(*hk.transform(function), x[:1]).",
        "keras": "Wrap a Keras model by fm.functional(init, apply), with model.stateless_call in apply.",
        "torch": "A PyTorch module holds no JAX arrays: write the model in JAX, Equinox or Flax, and copy the arrays.",
    }
)
