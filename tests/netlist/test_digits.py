"""Digits learned inside the simulator, against the same network trained by backpropagation in torch."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "examples/netlist/learn_digits.py"
spec = importlib.util.spec_from_file_location("netlist_digits", PATH)
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)


def test_the_perceptron_learns_as_by_backpropagation():
    model, data = example.network("mlp"), example.digits()
    made = example.learned(example.circuit(model), data, epochs=2)
    assert example.accuracy(made, data) > 0.75
    assert abs(example.accuracy(made, data) - example.backpropagation(model, data, epochs=2)) < 0.01


@pytest.mark.slow
def test_eight_bit_weights_learn():
    model, data = example.network("mlp"), example.digits()
    net = example.quantised(example.circuit(model), data, 8, 16)
    before, after = example.accuracy(net, data), example.accuracy(example.learned(net, data, epochs=1), data)
    assert before < 0.3
    assert after > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("bits, most", [(None, 0.01), ((8, 16), 0.03)])
def test_accuracy_is_that_of_backpropagation(name, untied, bits, most):
    model, data = example.network(name), example.digits()
    expected = example.backpropagation(model, data, epochs=20)
    net = example.circuit(model, untied)
    if bits is not None:
        net = example.quantised(net, data, *bits)
    assert expected > 0.95
    assert abs(example.accuracy(example.learned(net, data, epochs=20), data) - expected) < most
