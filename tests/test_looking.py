"""Loss trees, and what notebooks show."""

import html.parser
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Linear, Net, Pair, data, net, pair

import fulmen as fm
from fulmen import dispatch
from fulmen.core.component import record
from fulmen.dispatching.location import place
from fulmen.inspect import LossNode, explain, loss_tree, methods_table, summary
from fulmen.inspect.text import describe_bytes, describe_flops, drawable

X, Y = data(20)


class Tracked(fm.Model):
    """A net <with> everything: a list, a buffer, a number, a function."""

    layers: list[Linear]
    mean: fm.Buffer
    slope: float = 0.25
    activation: "callable" = fm.static(default=jax.nn.relu)


@dispatch
def forward(model: Tracked, x):
    for layer in model.layers:
        x = model.activation(layer(x))
    return record(x, model.mean, x.mean())


@dispatch
def loss(model: Tracked, batch: fm.Labeled):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch.x), batch.y)


class Weighted(fm.System):
    """Entries with a dict among them."""

    pair: Pair
    extra: Net
    strength: float = 0.5


@dispatch
def losses(system: Weighted, batch):
    size = system.strength * (system.extra.layer.weight**2).sum()
    return {
        "pair": losses(system.pair, batch),
        "extra": loss(system.extra, batch),
        "terms": {"size": size, "one": jnp.float32(1)},
    }


class Halved(fm.System):
    """Another sum, and a wrapper inside."""

    inner: Weighted
    frozen: fm.Frozen


@dispatch
def reduce_losses(system: Halved, losses, batch):
    return 0.5 * reduce_losses(system.inner, losses["inner"], batch) + losses["frozen"].mean()


def tracked(width=5):
    return Tracked([Linear(4, width), Linear(width, 3)], fm.Buffer(jnp.zeros(())))


def halved():
    return Halved(Weighted(pair(), net()), fm.Frozen(net()))


@pytest.fixture(scope="module")
def state():
    return fm.setup(halved(), (X, Y), optimizer=optax.adam, lr=1e-3)


class Checker(html.parser.HTMLParser):
    """Tags that are closed as they were opened, and the text between them."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.styles = [], "", ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.styles += dict(attributes).get("style", "") + ";"
        assert {dict(attributes).get(name, "none") for name in ("fill", "stroke")} <= {"none", "currentColor"}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def shown(picture):
    """The text of what a notebook shows; no colours of its own."""
    checker = Checker(picture if isinstance(picture, str) else picture._repr_html_())
    assert "array(" not in checker.text.lower()
    for part in checker.styles.split(";"):
        name, _, value = part.partition(":")
        assert not name.strip().endswith("color") or value.strip() in ("inherit", "transparent", "currentColor")
        assert name.strip() != "background" or value.strip() == "transparent"
    return checker.text


# loss_tree


def test_loss_tree_has_the_values_that_are_summed(state):
    tree = loss_tree(state, (X, Y))
    inner = tree.children["inner"]
    entries = fm.losses(state, (X, Y))["inner"]
    assert tree.value == float(fm.loss(state, (X, Y)))
    assert list(tree.children) == ["inner", "frozen"]
    assert inner.value == pytest.approx(sum(child.value for child in inner.children.values()), rel=1e-6)
    assert tree.value == pytest.approx(inner.value / 2 + tree.children["frozen"].value, rel=1e-6)
    one = inner.children["pair"].children["one"]
    assert one.value == pytest.approx(float(entries["pair"]["one"].mean()), rel=1e-6)
    assert (one.name, one.type, one.examples, one.children) == ("one", "Net", 20, {})
    assert inner.children["terms"].children["one"].value == 1.0
    assert inner.children["terms"].children["one"].examples is None
    assert (tree.name, tree.type, tree.children["frozen"].type) == ("loss", "Halved", "Frozen(Net)")


def test_loss_tree_weights_examples():
    system = fm.init(pair(), jax.random.key(3))
    weight = np.arange(20, dtype=np.float32)
    tree = loss_tree(system, (X, Y, weight))
    each = fm.losses(system, fm.Labeled(X, Y))["two"]
    assert tree.children["two"].value == pytest.approx(float((each * weight).sum() / weight.sum()), rel=1e-5)


def test_loss_tree_of_a_classifier_has_a_node_per_term():
    objective = fm.CrossEntropy(smoothing=0.1) + 0.25 * fm.L2()
    tree = loss_tree(fm.init(fm.Classifier(Linear(4, 3), objective), jax.random.key(0)), (X, Y))
    assert tree.value == pytest.approx(sum(child.value for child in tree.children.values()), rel=1e-6)
    assert [child.type for child in tree.children.values()] == ["CrossEntropy", "L2"]
    assert [child.examples for child in tree.children.values()] == [20, None]
    assert "0.25 * L2()" in str(tree) and "smoothing=0.1" in str(tree)


class Players(fm.Game):
    first: Net
    second: Net


@dispatch
def losses(game: Players, batch):
    return {"first": loss(game.first, batch), "second": {"a": loss(game.second, batch), "b": jnp.float32(2)}}


def test_loss_tree_of_games_models_and_user_defined_losses():
    game = fm.init(Players(net(), net()), jax.random.key(0))
    tree = loss_tree(game, (X, Y))
    assert tree.children["second"].value == pytest.approx(tree.children["second"].children["a"].value + 2, rel=1e-6)
    assert tree.children["second"].type == "Net"
    model = loss_tree(game.first, (X, Y))
    assert (model.value, model.examples) == (pytest.approx(tree.children["first"].value), 20)
    with pytest.raises(ValueError, match=r"layer\.weight"):
        loss_tree(Players(net(), net()), (X, Y))


def test_loss_tree_of_an_attacked_batch():
    attack = fm.FGSM(fm.LinfBall(0.5))
    system = fm.init(
        fm.Adversarial(fm.Classifier(Linear(4, 3), fm.CrossEntropy() + 0.1 * fm.L2()), attack), jax.random.key(0)
    )
    clean = fm.Labeled(X, Y)
    attacked = fm.data.Attacked(fm.perturb(attack, system, clean, jax.random.key(1)), clean)
    trees = [loss_tree(system, clean), loss_tree(system, attacked)]
    assert [tree.type for tree in trees] == ["Adversarial", "Adversarial"]
    for tree, batch in zip(trees, (clean, attacked), strict=True):
        assert tree.value == pytest.approx(float(fm.loss(system, batch)), rel=1e-6)
        assert [child.type for child in tree.children.values()] == ["CrossEntropy", "L2"]
        assert tree.value == pytest.approx(sum(child.value for child in tree.children.values()), rel=1e-6)
    assert trees[1].value > trees[0].value
    nested = fm.init(fm.Adversarial(Weighted(pair(), net()), attack), jax.random.key(0))
    tree = loss_tree(nested, fm.data.Attacked(fm.perturb(attack, nested, clean, jax.random.key(1)), clean))
    assert [child.type for child in tree.children.values()] == ["Pair", "Net", ""]
    assert tree.children["pair"].children["one"].examples == 20


class Opaque(Weighted):
    """A loss of its own, and the entries that it had."""


@dispatch
def loss(system: Opaque, batch):
    return jnp.float32(7)


def test_loss_tree_of_a_user_defined_loss():
    tree = loss_tree(fm.init(Opaque(pair(), net()), jax.random.key(0)), (X, Y))
    assert tree.value == 7 and list(tree.children) == ["pair", "extra", "terms"]
    assert "by loss(Opaque, object) at test_looking.py:" in tree.note


def test_loss_tree_takes_a_mode(getkey):
    class Noisy(fm.Model):
        layer: Linear

    @dispatch
    def loss(model: Noisy, batch, mode: fm.Train):
        return jax.random.normal(mode.key, ())

    @dispatch
    def loss(model: Noisy, batch):
        return jnp.float32(5)

    model, key = fm.init(Noisy(Linear(4, 3)), getkey()), getkey()
    assert loss_tree(model, (X, Y)).value == 5
    assert loss_tree(model, (X, Y), fm.Train(key)).value == float(fm.loss(model, fm.Labeled(X, Y), fm.Train(key))) != 5


def test_loss_tree_in_a_notebook_has_a_bar_for_each_finite_value():
    children = {"up": LossNode("up", "", 2.0), "down": LossNode("down", "", -1.0), "lost": LossNode("lost", "", np.nan)}
    picture = LossNode("loss", "Sum", 1.0, None, children)._repr_html_()
    bars = re.findall(r'<rect x="([\d.]+)" y="1" width="([\d.]+)" height="8" fill="(\w+)"', picture)
    ends = [(float(x), float(x) + float(width), fill) for x, width, fill in bars]
    zero = ends[0][0]
    assert [fill for *_, fill in ends] == ["currentColor", "currentColor", "none"]
    assert [end - zero for _, end, _ in ends] == pytest.approx([118 / 3, 236 / 3, 0], abs=0.2)
    assert zero - ends[2][0] == pytest.approx(118 / 3, abs=0.2) and "nan" in shown(picture)
    assert "<rect" not in LossNode("loss", "", 0.0)._repr_html_()


def test_loss_tree_prints_as_a_tree(state):
    lines = str(loss_tree(state, (X, Y))).splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["loss", "├─"]
    assert "by reduce_losses(Halved, object, object) at test_looking.py:" in lines[0]
    assert "│  ├─ pair" in "\n".join(lines) and "mean over 20 examples" in lines[3]
    assert len({line.index("Net") for line in lines if "  Net  " in line}) == 1


# Notebooks


def test_html_of_everything(state):
    assert "inner.strength" in shown(summary(state))
    assert "mean over 20 examples" in shown(loss_tree(state, (X, Y)))
    assert "handed to its part" in shown(explain(fm.loss, state.system, fm.Labeled(X, Y)))
    assert "forward(Linear, object)" in shown(fm.forward) and "tiny.py:" in shown(fm.forward)
    assert "the value that training minimises" in shown(methods_table(fm.loss)).lower()
    text = shown(tracked())
    assert "layers: list" in text and "f32[4, 5]" in text and "relu" in text and "43 parameters" in text
    assert "inner: Weighted" in shown(state)


def test_html_of_an_objective_is_its_formula_and_its_terms():
    objective = fm.CrossEntropy() + 0.5 * fm.L2() + optax.linear_schedule(0.0, 1.0, 9) * fm.MSE().named("extra")
    for text in (shown(objective), shown(fm.Classifier(Linear(4, 3), objective))):
        assert "Sum CrossEntropy() + 0.5 * L2() + schedule * MSE().named('extra')" in text
        assert "cross_entropy1CrossEntropy()" in text and "l20.5L2()" in text and "extraschedule" in text
        assert "−Σ_c w_c y_c log softmax(z)_c" in text and "smoothing: None" in text
        assert text.count("The squared error (z − y)²") == 1  # one table, and none for the sum's own terms
    assert "term" not in shown(fm.MSE())
    assert "augment: ()" in shown(fm.Classifier(Linear(4, 3), objective))

    class Bare(fm.Objective):
        pass

    assert "Bare()" in shown(fm.MSE() + Bare()) and "mode" not in shown(fm.MSE() + Bare())


def test_html_of_a_state(state):
    text = shown(fm.show(state))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state.optimizer_state))
    assert text.startswith(f"State step: 0 · optimizer state: {describe_bytes(size)} · optimizer: adam(")
    assert "steps per epoch: 1 · batch size: 20" in text and "inner: Weighted" in text


def test_html_of_batches_has_sizes_and_no_values():
    text = shown(fm.show(fm.Labeled(X, Y)))
    assert text.split() == ["Labeled", "20", "examplesx:", "f32[20,", "4]", "y:", "i32[20]"]
    attacked = shown(fm.show(fm.data.Attacked(fm.Labeled(X, Y), fm.Labeled(X, Y, weight=np.ones(20, np.float32)))))
    assert "clean: Labeled 20 examples" in attacked and attacked.count("weight: f32[20]") == 1


@pytest.mark.parametrize("make", [fm.models.resnet50, fm.models.gpt2])
def test_html_of_large_models_is_small(make):
    model = make()
    for picture in (fm.show(model), summary(model)._repr_html_(), fm.show(fm.Classifier(model))):
        assert len(picture) < 100_000
        assert f"{fm.count_parameters(jax.eval_shape(fm.init, model, jax.random.key(0))):,} parameters" in shown(picture)


def test_html_escapes():
    class Text(fm.Model):
        words: str = "<script>alert(1)</script>"
        parts: dict[str, jax.Array] | None = None

    @dispatch
    def forward(model: Text, x):
        """A <b>bold</b> claim."""

    bad = "<script>x</script>"
    named = fm.show(fm.MSE().named(bad) + fm.MSE()), fm.History({bad: np.ones(3)})._repr_html_()
    parts = Text(parts={bad: jnp.ones(2)})
    node = LossNode(bad, bad, 1.0, None, {bad: LossNode(bad, "", -1.0, note=bad)})
    for text in (fm.show(parts), methods_table(fm.forward), *named, summary(parts)._repr_html_(), node._repr_html_()):
        assert "<script>" not in text and "<b>bold" not in text
    assert "<script>" in shown(fm.show(Text()))


def test_html_of_a_component_whose_init_fails():
    class Broken(fm.Model):
        layer: Linear

    @dispatch
    def init(model: Broken, key):
        raise RuntimeError("no")

    assert "layer: Linear" in shown(Broken(Linear(2, 3)))


# Text


@pytest.mark.parametrize(("n", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (4 * 10**12, "4.0 TB")])
def test_bytes(n, text):
    assert describe_bytes(n) == text
    assert describe_flops(n) == text.replace("B", "FLOP")


@pytest.mark.parametrize(
    ("location", "module", "text"),
    [
        ("/somewhere/src/fulmen/compose/game.py:7", "fulmen.compose.game", "fulmen/compose/game.py:7"),
        ("/somewhere/src/fulmen/models/__init__.py:7", "fulmen.models", "fulmen/models/__init__.py:7"),
        ("/home/me/train.py:12", "__main__", "train.py:12"),
        ("<built-in function sin>", "math", "<built-in function sin>"),
    ],
)
def test_locations(location, module, text):
    assert place(location, module) == text


def test_text_in_ascii(state):
    code = "from fulmen.inspect.text import drawable; print(drawable('├─ loss × 2 …'))"
    run = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONIOENCODING": "ascii", "JAX_PLATFORMS": "cpu"}, capture_output=True
    )
    assert run.stdout.decode("ascii").strip() == "|- loss x 2 ~"
    assert drawable("├─ loss") == "├─ loss"
