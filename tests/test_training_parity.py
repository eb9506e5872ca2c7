"""train.py repeats 200 steps of the authors' loop, as goldens/training/make.py simulated it in float64."""

from pathlib import Path

import numpy as np
import parity_training
import pytest
import toy_training as toy


def test_the_first_steps_of_training_are_the_authors(tmp_path: Path) -> None:
    found = parity_training.losses("vivit_fe", "64-true", 20, tmp_path)
    np.testing.assert_allclose(found, parity_training.golden()["vivit_fe"][:20], rtol=0, atol=1e-6)


def test_the_goldens_have_the_draws_of_train(tmp_path: Path) -> None:
    parity_training.write_videos(tmp_path)
    order, shares = parity_training.draws(tmp_path)
    golden = parity_training.golden()
    np.testing.assert_array_equal(order, golden["order"])
    np.testing.assert_array_equal(shares, golden["shares"])


@pytest.mark.slow
@pytest.mark.parametrize("model", toy.MODELS)
def test_200_steps_are_the_authors(model: str, tmp_path: Path) -> None:
    found, expected = (
        parity_training.losses(model, "64-true", toy.STEPS, tmp_path),
        parity_training.golden()[model],
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert expected[-50:].mean() < expected[:50].mean() - 0.1  # the model has learned something


@pytest.mark.slow
@pytest.mark.parametrize("model", toy.MODELS)
def test_bf16_is_no_noisier_than_another_implementation_of_it(model: str, tmp_path: Path) -> None:
    """The noise of bf16 is the distance of JAX's own bf16 losses from its float64 losses."""
    golden = parity_training.golden()
    error = np.abs(parity_training.losses(model, "bf16-mixed", toy.STEPS, tmp_path) - golden[model])
    noise = np.abs(golden[f"{model}/bf16"] - golden[model])
    assert error.mean() < 2 * noise.mean()
    assert error.max() < 2 * noise.max()
