"""Positions of objects in imagined frames."""

import numpy as np

from starflow_world.agents.cartpole import locate_cart_and_pole
from starflow_world.envs.cartpole_pixels import PIXELS_PER_METRE, SIDE, Moved, clean_frame
from starflow_world.evaluation import positions
from starflow_world.evaluation.intervals import Share
from starflow_world.evaluation.positions import position_figures
from tests.evaluation.test_fidelity import episode
from tests.worlds import tiny_world


def test_cart_and_pole_are_found_in_noise_to_a_tenth_of_a_pixel() -> None:
    rng = np.random.default_rng(0)
    for x, angle in ((0.0, 0.0), (1.3, 0.2), (-1.0, -0.4)):
        clean = clean_frame(Moved(np.zeros(4), np.array((x, 0, angle, 0))))
        frame = (255 * (clean + 0.02 * rng.standard_normal(clean.shape))).round().clip(0, 255).astype(np.uint8)
        found = locate_cart_and_pole(frame[None])
        assert abs(found["cart"][0, 0] - (SIDE / 2 + PIXELS_PER_METRE * x)) < 0.1
        assert abs(found["pole"][0, 0] - found["cart"][0, 0] - 20 * np.sin(angle)) < 0.3, "middle of what is above it"
    assert np.isnan(locate_cart_and_pole(np.full((1, 64, 64, 3), 51, np.uint8))["pole"]).all()


def test_distances_are_between_imagined_and_real_frames_of_the_same_step() -> None:
    """A real frame shows an object five pixels further from the corner in each step, an imagined one in the corner."""
    world, episodes = tiny_world(), [episode(seed=s, length=12) for s in range(2)]
    steps = {float(frame.mean()): t for e in episodes for t, frame in enumerate(e.frames)}

    def locate(frames: np.ndarray) -> dict[str, np.ndarray]:
        times = [steps.get(float(frame.mean()), 0) for frame in frames]
        return {"light": np.multiply.outer(times, (3.0, 4.0))}

    found = position_figures(world, episodes, locate, horizons=(1, 3))
    begins = range(world.config.context - 1, 12 - 3, 3)
    for horizon in (1, 3):
        assert found[f"light_{horizon}"]["pixels"] == 5 * np.mean([begin + horizon for begin in begins])
        assert found[f"light_{horizon}"]["seen"] == Share(2 * len(begins), 2 * len(begins))


def test_what_is_not_seen_is_counted_and_has_no_distance() -> None:
    here, there = np.array([[1.0, 1], [np.nan, np.nan], [0, 0]]), np.array([[1.0, 2], [3, 3], [np.nan, np.nan]])
    assert positions._figures(here, there) == {"pixels": 1.0, "pixels_95": 1.0, "seen": Share(1, 2)}
    assert positions._figures(there[2:], here[:1]) == {"seen": Share(0, 1)}
