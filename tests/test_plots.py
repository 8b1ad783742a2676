"""Plots of histories and loss trees, and the HTML of a history, which needs no matplotlib."""

import itertools

import matplotlib
import numpy as np
import optax
import pytest
from forked import run_code
from hypothesis import given
from hypothesis import strategies as st
from test_looking import shown
from tiny import data, net

import fulmen as fm
from fulmen.inspect import LossNode
from fulmen.inspect.curves import apart
from fulmen.inspect.plots import COLOURS, TEXT

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROBUST = {
    "loss": [2.0, 1.0, 0.5],
    "robust/accuracy": [0.1, 0.4, 0.5],
    "accuracy": [0.2, 0.6, 0.7],
    "lr": [1e-3, 5e-4, 0.0],
    "validation/loss": [2.1, 1.2, 1.5],
    "validation/accuracy": [0.2, 0.65, 0.6],
}
GAME = {
    "loss": [2.0, 2.1],
    "loss/critic/real": [0.7, 0.6],
    "loss/critic/fake": [0.7, 0.5],
    "loss/generator": [0.7, 0.9],
    "validation/loss/generator": [0.8, 0.8],
    "lr/critic": [4e-4, 4e-4],
    "lr/generator": [1e-4, 1e-4],
}


def history(figures):
    return fm.History({name: np.array(values) for name, values in figures.items()})


def draw(x):
    figure = fm.plot(x)
    figure.draw_without_rendering()
    plt.close(figure)
    return figure


def labels(axes):
    return [text.get_text() for text in axes.texts]


def luminance(colour):
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in matplotlib.colors.to_rgb(colour)]
    return np.array(parts)


# Histories


def test_metrics_of_one_kind_share_a_panel():
    loss, accuracy, lr = draw(history(ROBUST)).axes
    assert [axes.get_title() for axes in (loss, accuracy, lr)] == ["loss", "accuracy", "lr"]
    assert labels(loss) == ["training 0.5", "validation 1.5 (best 1.2)"]
    assert labels(accuracy) == ["robust 0.5", "training 0.7", "validation 0.6 (best 0.65)"]
    assert labels(lr) == ["0"]
    assert all(axes.get_legend() is None and axes.get_xlabel() == "epoch" for axes in (loss, accuracy, lr))
    training, validation, best = loss.lines
    np.testing.assert_array_equal(training.get_data(), [[1, 2, 3], ROBUST["loss"]])
    np.testing.assert_array_equal(validation.get_data(), [[1, 2, 3], ROBUST["validation/loss"]])
    assert (training.get_linestyle(), validation.get_linestyle()) == ("-", "--")
    np.testing.assert_array_equal(np.ravel(best.get_data()), [2, 1.2])
    # A label has its line's colour, and what is trained on has one colour in every panel.
    assert [t.get_color() for t in loss.texts] == [training.get_color(), validation.get_color()]
    assert training.get_color() == accuracy.lines[1].get_color() != accuracy.lines[0].get_color()


def test_the_parts_of_a_games_loss_have_their_own_panel():
    loss, parts, lr = draw(history(GAME)).axes
    assert [axes.get_title() for axes in (loss, parts, lr)] == ["loss", "parts of the loss", "lr"]
    assert [label.split()[:-1] for label in labels(lr)] == [["critic"], ["generator"]]
    assert labels(parts)[-1] == "validation generator 0.8" and len(labels(parts)) == 4
    generator, validation = (line for line in parts.lines if line.get_ydata()[-1] in (0.9, 0.8))
    assert generator.get_color() == validation.get_color() and validation.get_linestyle() == "--"


def test_losses_of_a_game_have_no_best_epoch():
    """What one player gains, another loses; its other figures have one. A part of a loss never has."""
    found = history({**GAME, "loss": [2.0, 2.1], "accuracy": [0.5, 0.4]})
    assert "loss" in fm.show(found) and fm.show(found).count("epoch 1") == 2
    found.opposed = True
    assert [label for axes in draw(found).axes for label in labels(axes) if "best" in label] == ["0.4 (best 0.5)"]
    assert fm.show(found).count("epoch 1") == 1
    for component, opposed in ((fm.testing.systems()["game"], True), (fm.testing.systems()["classifier"], False)):
        _, run = fm.fit(component[0], component[1], optimizer=optax.adam, lr=1e-3, epochs=1, progress=False)
        assert run.opposed is opposed


def test_one_epoch_is_points():
    figure = draw(history({name: values[:1] for name, values in ROBUST.items()}))
    lines = [line for axes in figure.axes for line in axes.lines]
    assert len(lines) == len(ROBUST) and all(line.get_marker() == "o" for line in lines)
    low, high = figure.axes[0].get_xlim()
    assert [tick for tick in figure.axes[0].get_xticks() if low <= tick <= high] == [1]


def test_values_that_are_not_finite_are_left_out_and_named():
    figure = draw(history({"loss": [1.0, np.nan, np.inf], "validation/loss": [np.nan] * 3}))
    (axes,) = figure.axes
    assert labels(axes) == ["training inf (best 1)", "validation nan"]
    np.testing.assert_array_equal(axes.lines[0].get_data(), [[1], [1.0]])
    assert len(axes.lines[-1].get_xdata()) == 0


def test_losses_over_several_powers_of_ten_have_a_logarithmic_axis():
    wide, accuracy = draw(history({"loss": [5.0, 1e-3], "accuracy": [1e-4, 1.0]})).axes
    assert (wide.get_yscale(), accuracy.get_yscale()) == ("log", "linear")
    assert draw(history({"loss": [5.0, -1e-3]})).axes[0].get_yscale() == "linear"


def test_several_values_per_epoch_are_an_image():
    matrix = np.arange(18.0).reshape(2, 3, 3)
    vector, last = draw(history({"f1": np.arange(8.0).reshape(2, 4), "confusion_matrix": matrix})).axes[:2]
    np.testing.assert_array_equal(vector.images[0].get_array(), np.arange(8.0).reshape(2, 4).T)
    np.testing.assert_array_equal(last.images[0].get_array(), matrix[-1])
    assert (last.get_ylabel(), last.get_xlabel()) == ("true class", "predicted class, epoch 2")
    assert labels(last) == [str(n) for n in range(9, 18)]
    assert [t.get_color() for t in last.texts] == ["white"] * 5 + ["black"] * 4
    assert not labels(vector)


def test_the_best_epoch_is_marked_on_the_validation_curve():
    rising = history({"accuracy": [0.5, 0.9, 0.8], "validation/accuracy": [0.5, 0.6, 0.7]})
    (axes,) = draw(rising).axes
    assert labels(axes) == ["training 0.8", "validation 0.7"]
    training, validation = axes.lines
    assert (validation.get_marker(), validation.get_markevery()) == ("o", [-1])  # also if it is the last one
    assert training.get_marker() == "None"
    (axes,) = draw(history({"accuracy": [0.5, 0.9, 0.8]})).axes
    assert labels(axes) == ["0.8 (best 0.9)"]


@pytest.mark.parametrize(("first", "highest"), [(30.0, 2.3), (3.0, 3.05)])
def test_the_compilation_does_not_rule_the_picture_of_seconds(first, highest):
    *_, axes = draw(history({"loss": [1.0] * 4, "seconds": [first, 1.0, 2.0, 1.5]})).axes
    assert axes.get_title() == "seconds" and axes.get_ylim()[1] == pytest.approx(highest, rel=0.05)
    assert ("epoch 1, with compilation: 30" in labels(axes)) is (first > 4)
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [first, 1.0, 2.0, 1.5])


def test_an_empty_history_cannot_be_plotted():
    with pytest.raises(ValueError, match="no epoch of the run has ended"):
        fm.plot(fm.History())


def test_labels_do_not_overlap():
    many = {f"head_{i}/accuracy": [0.1, 0.9 + i / 1000] for i in range(12)}
    (axes,) = draw(history(many)).axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 12
    for a, b in itertools.combinations(boxes, 2):
        assert a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
    highest = max(axes.texts, key=lambda text: text.get_window_extent().y0)
    assert highest.get_text() == "head_11 0.911"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.001, 0.5))
def test_heights_are_apart_in_order_and_inside(places, gap):
    moved = apart(places, gap)
    gap = min(gap, 1 / max(len(places) - 1, 1))
    order = sorted(range(len(places)), key=lambda i: moved[i])
    assert all(moved[b] - moved[a] >= gap - 1e-6 for a, b in itertools.pairwise(order))
    assert all(-1e-6 <= y <= 1 + 1e-6 for y in moved)
    assert all(places[a] <= places[b] for a, b in itertools.pairwise(order))
    wide = [i / len(places) for i in range(len(places))]
    assert apart(wide, 1 / len(places) - 1e-6) == pytest.approx(wide)


def test_the_history_of_a_run_is_plotted_and_shown():
    x, y = data(40)
    system = fm.Classifier(net().layer, fm.CrossEntropy() + 0.1 * fm.L2(), metrics=(fm.Accuracy(),))
    _, record = fm.fit(system, (x, y), optimizer=optax.adam, lr=1e-3, epochs=2, validation=(x, y), progress=False)
    titles = [axes.get_title() for axes in draw(record).axes]
    assert titles == ["loss", "parts of the loss", "accuracy", "lr", "seconds"]
    text = shown(record)
    columns = {line.index(" [") for line in repr(record).splitlines()[1:]}
    assert columns == {max(map(len, record))}
    assert text.startswith("History of 2 epochs") and all(name in text for name in record)


def test_html_of_a_history_has_a_curve_and_the_values():
    picture = history(ROBUST)._repr_html_()
    assert picture.count("<polyline") == len(ROBUST)
    text = shown(picture)
    assert "validation/loss2.11.2 epoch 21.5" in text and "lr0.0010" in text
    mixed = history({"loss": [np.nan, np.nan], "confusion_matrix": np.zeros((2, 3, 3))})._repr_html_()
    assert "3 × 3 values per epoch" in shown(mixed) and "<polyline" not in mixed
    assert shown(fm.History()) == "History of 0 epochs"
    long = history({"loss": np.random.default_rng(0).random(100_000)})._repr_html_()
    assert len(long) < 5000


# Loss trees


def tree():
    inner = LossNode("inner", "Pair", 1.7, None, {"one": LossNode("one", "Net", 1.3, 4), "two": LossNode("two", "Net", 0.4)})
    return LossNode("loss", "Whole", 1.1, None, {"inner": inner, "bonus": LossNode("bonus", "", -0.6)})


def test_a_loss_tree_has_a_bar_for_each_entry():
    (axes,) = draw(tree()).axes
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == [1.1, 1.7, 1.3, 0.4, -0.6]
    assert labels(axes) == ["1.1", "1.7", "1.3", "0.4", "-0.6"]
    names = [tick.get_text().rstrip() for tick in axes.get_yticklabels()]
    assert names == ["loss", "├─ inner", "│  ├─ one", "│  └─ two", "└─ bonus"]
    low, high = axes.get_xlim()
    assert low < -0.6 and high > 1.7
    tops = [tick.get_window_extent().y0 for tick in axes.get_yticklabels()]
    assert tops == sorted(tops, reverse=True)
    shades = [bar.get_alpha() for bar in axes.patches]
    assert shades[0] == shades[1] < shades[2] == shades[4]


@pytest.mark.parametrize("values", [(np.nan, np.inf, -3e5), (0.0, 0.0, 0.0), (-1.0, -2.0, -3.0), (1e-30, 1e30, -np.inf)])
def test_loss_trees_of_all_values_are_drawn(values):
    root, *entries = values
    node = LossNode("loss", "X", root, None, {f"e{i}" * 30: LossNode(f"e{i}" * 30, "", v) for i, v in enumerate(entries)})
    (axes,) = draw(node).axes
    assert labels(axes) == [f"{value:.4g}" for value in values]
    assert np.isfinite(axes.get_xlim()).all()


# Light, dark, and without matplotlib


def test_colours_suit_light_and_dark_pages_and_colour_blindness():
    weights = np.array([0.2126, 0.7152, 0.0722])
    for colour in (*COLOURS, TEXT):
        for page in ("white", "#111111"):
            lighter, darker = sorted((luminance(c) @ weights for c in (colour, page)), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) > 3.5
    # Machado, Oliveira and Fernandes 2009: none, protanopia, deuteranopia, tritanopia; distances as in CIE L*a*b*.
    kinds = [
        np.eye(3),
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])

    def lab(seen):
        x, y, z = np.cbrt(to_xyz @ seen / [0.9505, 1.0, 1.089])
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    for kind in kinds:
        seen = [lab(np.clip(np.asarray(kind) @ luminance(colour), 0, 1)) for colour in COLOURS]
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 20


@pytest.mark.parametrize("x", [history(ROBUST), tree()], ids=["history", "loss tree"])
def test_plots_have_no_background(x):
    figure = draw(x)
    texts = [
        t for axes in figure.axes for t in (axes.title, axes.xaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels())
    ]
    assert figure.patch.get_alpha() == 0 and all(axes.patch.get_alpha() == 0 for axes in figure.axes)
    assert {text.get_color() for text in texts} == {TEXT}


def test_without_matplotlib_the_error_names_the_package(tmp_path):
    code = """
import sys
sys.modules["matplotlib"] = None
import numpy as np, fulmen as fm
record = fm.History({"loss": np.ones(2)})
assert "polyline" in record._repr_html_()
for x in (record, fm.inspect.LossNode("loss", "", 1.0), fm.cosine(1e-3)):
    try:
        fm.plot(x)
    except ImportError as error:
        assert 'pip install "fulmen[examples]"' in str(error)
    else:
        raise AssertionError
"""
    run_code(code, tmp_path)
