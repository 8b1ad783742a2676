"""`ResNet`: the published counts, agreement with PyTorch's block, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from recorded import agrees

import fulmen as fm
from fulmen.models import BasicBlock, Bottleneck, MaxPool, ResNet, resnet18, resnet34, resnet50

CONVS = {"inner.layers.0": "conv1", "inner.layers.3": "conv2", "shortcut.layers.0": "downsample.0"}
NORMS = {"inner.layers.1": "bn1", "inner.layers.4": "bn2", "shortcut.layers.1": "downsample.1"}


def test_a_basic_block_agrees_with_pytorch():
    """In training, with the running statistics after it, and in evaluation."""
    weights = {f"{path}.weight": f"{theirs}.weight" for path, theirs in (CONVS | NORMS).items()}
    weights |= {f"{path}.bias": f"{theirs}.bias" for path, theirs in NORMS.items()}
    agrees("basic_block", BasicBlock(3, 4, 2), weights, {p: f"after/{theirs}.running_{{}}" for p, theirs in NORMS.items()})


@pytest.mark.parametrize(
    ("net", "size", "count"),
    [
        (resnet18(), 224, 11_689_512),
        (resnet34(), 224, 21_797_672),
        (resnet50(), 224, 25_557_032),
        (resnet18(10, stem="cifar"), 32, 11_173_962),
        (resnet50(10, stem="cifar"), 32, 23_520_842),
        (resnet18(10, in_channels=1, stem="cifar"), 28, 11_172_810),
    ],
    ids=["18", "34", "50", "18, CIFAR", "50, CIFAR", "18, MNIST"],
)
def test_published_counts_and_shapes(net, size, count):
    """Nothing is allocated."""
    x = jax.ShapeDtypeStruct((2, size, size, net.stem[0].in_channels), jnp.float32)

    def run(key, x):
        model = fm.init(net, key)
        assert fm.count_parameters(model) == count
        return net.stem and model.stem(x), model.stages(model.stem(x)), model(x)

    stem, stages, y = jax.eval_shape(run, jax.random.key(0), x)
    small = size < 100
    assert stem.shape == (2, size, size, 64) if small else (2, 56, 56, 64)
    assert (
        stages.shape == (2, -(-size // 8), -(-size // 8), net.head.in_features) if small else (2, 7, 7, net.head.in_features)
    )
    assert y.shape == (2, net.head.out_features)


def test_shortcuts():
    assert len(BasicBlock(4, 4).shortcut) == 0
    assert len(BasicBlock(4, 4, 2).shortcut) == len(BasicBlock(4, 8).shortcut) == 2
    assert len(Bottleneck(8, 2).shortcut) == 0
    assert len(Bottleneck(2, 2).shortcut) == 2


def test_it_learns():
    """Which of two halves of a small image is brighter: after a few steps, better than by chance, and buffers move."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 8, 8, 1)).astype(np.float32)
    y = rng.integers(0, 2, 32).astype(np.int32)
    x[y == 0, :, :4] += 1
    x[y == 1, :, 4:] += 1
    net = ResNet(BasicBlock, (1,), classes=2, in_channels=1, widths=(4,), stem="cifar")
    state = fm.setup(fm.Classifier(net, fm.CrossEntropy()), (x, y), optimizer=optax.adam, lr=1e-2, seed=0)
    losses = []
    for _ in range(40):
        state, logs = fm.train_step(state, (x, y))
        losses.append(float(logs["loss"]))
    assert losses[-1] < 0.4 * losses[0]
    moved = [leaf for leaf in fm.leaves(state.system) if leaf.role == "buffer"]
    assert len(moved) == 2 * (1 + 2)
    assert all(np.abs(leaf.value - (0 if "mean" in leaf.path else 1)).max() > 1e-3 for leaf in moved)


def test_max_pool_with_padding():
    x = -jnp.arange(1.0, 17.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(MaxPool(3, 2, padding=1)(x)[0, ..., 0], [[-1, -2], [-5, -6]])
    np.testing.assert_array_equal(
        MaxPool(2, padding=1)(x.astype(jnp.int32))[0, ..., 0], [[-1, -2, -4], [-5, -6, -8], [-13, -14, -16]]
    )
    with pytest.raises(ValueError, match=r"MaxPool\.padding must be less than the window"):
        fm.validate(MaxPool(2, padding=2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: resnet18(stem="mnist"), "ResNet.stem must be 'imagenet' or 'cifar', got 'mnist'"),
        (lambda: ResNet(BasicBlock, (2, 2)), r"ResNet takes one width per stage, got depths \(2, 2\)"),
    ],
    ids=["stem", "depths"],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
