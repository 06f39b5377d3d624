"""A compiled model in other modes, number formats and sizes than it was compiled in."""

from __future__ import annotations

import pytest
import torch
from helpers.models import ConvNet, Residual, distance, gradients, half_squares, mlp, seeded
from helpers.training import ALGORITHMS, data, pair, programs
from torch import nn

import pccompile


def test_train_and_eval_mode_each_have_their_program() -> None:
    x = data(6, 3, 8, 8)
    plain, pc = pair(ConvNet, x)
    for mode in (False, True, False):
        plain.train(mode)
        pc.train(mode)
        assert distance(gradients(pc, half_squares(pc(x))), gradients(plain, half_squares(plain(x)))) < 1e-9
    assert programs(pc) == 2


def test_mode_set_on_the_inner_model_is_seen() -> None:
    x = data(6, 3, 8, 8)
    plain, pc = pair(ConvNet, x)
    plain.eval()
    pc.model.eval()
    torch.testing.assert_close(pc(x), plain(x))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_running_statistics_are_updated_once_a_batch(algorithm: str) -> None:
    x = data(6, 3, 8, 8)
    plain, pc = pair(ConvNet, x, **ALGORITHMS[algorithm])
    for _ in range(2):
        plain(x)
        half_squares(pc(x)).backward()
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(dict(pc.named_buffers())[name], buffer)


def test_loss_updates_running_statistics_once() -> None:
    x = data(6, 3, 8, 8)
    plain, pc = pair(ConvNet, x, algorithm="strict")
    plain(x)
    pc.loss(x, target=data(6, 5)).backward()
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(dict(pc.named_buffers())[name], buffer)


@pytest.mark.parametrize("algorithm", ["exact", "fixed-prediction"])
def test_dropout_draws_one_mask_from_the_stream_that_eager_draws_it_from(algorithm: str) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 30), nn.Dropout(0.4), nn.Tanh(), nn.Linear(30, 2))

    x = data(5, 4)
    plain, pc = pair(make, x, **ALGORITHMS[algorithm])
    found = []
    for model in (plain, pc):
        torch.manual_seed(3)
        found.append(gradients(model, half_squares(model(x))))
    assert distance(found[1], found[0]) < 1e-8


def test_a_model_that_is_converted_after_compilation() -> None:
    x = data(5, 4, dtype=torch.float32)
    pc = pccompile.compile(seeded(mlp, torch.float32), (x,)).to(torch.float64)
    plain = seeded(mlp, torch.float32).to(torch.float64)
    assert (
        distance(gradients(pc, half_squares(pc(x.double()))), gradients(plain, half_squares(plain(x.double())))) < 1e-12
    )


def test_other_batch_sizes_need_no_other_program() -> None:
    x = data(5, 4)
    plain, pc = pair(mlp, x)
    for size, count in ((5, 1), (2, 1), (17, 1), (1, 2), (5, 2)):  # what holds for many need not hold for one
        x = data(size, 4)
        assert distance(gradients(pc, half_squares(pc(x))), gradients(plain, half_squares(plain(x)))) < 1e-12
        assert programs(pc) == count


def test_another_image_size_is_compiled_again() -> None:
    plain, pc = pair(ConvNet, data(2, 3, 8, 8))
    for size in (8, 11, 8):
        x = data(2, 3, size, size)
        assert distance(gradients(pc, half_squares(pc(x))), gradients(plain, half_squares(plain(x)))) < 1e-9
    assert programs(pc) == 2


def test_a_batch_of_one_can_be_the_example() -> None:
    plain, pc = pair(mlp, data(1, 4))
    x = data(6, 4)
    assert distance(gradients(pc, half_squares(pc(x))), gradients(plain, half_squares(plain(x)))) < 1e-12


def test_float32_is_right_to_its_own_precision() -> None:
    x = data(5, 4, dtype=torch.float32)
    plain, pc = pair(Residual, x)
    assert distance(gradients(pc, half_squares(pc(x))), gradients(plain, half_squares(plain(x)))) < 1e-5


def test_autocast_outside_does_not_reach_inference() -> None:
    x = data(5, 4, dtype=torch.float32)
    plain, pc = pair(mlp, x)
    loss = half_squares(pc(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(pc, loss)
    assert distance(found, gradients(plain, half_squares(plain(x)))) < 1e-5
