"""Clips, pixels and steps follow the authors' rules, or differ from them by what docs/fidelity.md says."""

import parity_recipes


def test_clips_and_crops_are_where_the_authors_have_them() -> None:
    for count in (parity_recipes.training_starts, parity_recipes.test_frames, parity_recipes.middle_crops):
        wrong, total = count()
        assert total > 30
        assert wrong == 0


def test_the_recipes_have_the_values_of_table_7() -> None:
    wrong, total = parity_recipes.table_7()
    assert (wrong, total) == (0, 105)


def test_the_half_step_of_warmup_is_all_that_differs() -> None:
    assert 0 < parity_recipes.half_step_of_warmup() < 1e-4


def test_frames_of_native_size_are_one_level_darker() -> None:
    read, accurate = parity_recipes.rgb_levels()
    assert -1.1 < read < -0.8
    assert abs(accurate) < 0.05


def test_clipping_before_the_mean_makes_shorter_steps_in_the_same_direction() -> None:
    norm, cosine = parity_recipes.clipping_order()
    assert norm < 1
    assert cosine > 0.99
