"""Golden nats of a whole world: see starflow_world/check/golden.py, whose numbers `starflow-world doctor` tests too."""

from starflow_world.check.golden import LARGEST_ERROR, golden_error


def test_nats_of_three_clips_are_the_golden_ones(at_most):
    at_most("relative error", golden_error(), LARGEST_ERROR)
