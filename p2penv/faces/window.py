"""Matplotlib figures as pixels or in a window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from p2penv.faces.runner import Runner

HEADLESS = ("agg", "pdf", "svg", "ps", "cairo", "template")  # Matplotlib backends without a window


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """Figure as an ``(height, width, 3)`` array."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class Picture:
    """Draws what a runner last played, as pixels or in a window of its own.

    Args:
        runner: whose first environment to draw.
        mode: ``"rgb_array"`` or ``"human"``; None draws nothing.
    """

    def __init__(self, runner: Runner, mode: str | None) -> None:
        self.runner = runner
        self.mode = mode
        self._window: Any = None

    def draw(self, info: Mapping[str, Any]) -> NDArray[np.uint8] | None:
        """Picture of the last step with its infos, or of the fresh episode if they are empty."""
        runner = self.runner
        if self.mode is None or runner.state is None:
            return None
        image = pixels(runner.env.render(runner.played, info or runner.env.initial_info(runner.params, runner.played)))
        if self.mode == "rgb_array":
            return image
        self._show(image)
        return None

    def _show(self, image: NDArray[np.uint8]) -> None:
        import matplotlib.pyplot as plt

        if self._window is None:
            self._window = plt.figure(figsize=(image.shape[1] / 100, image.shape[0] / 100))
            self._window.add_axes((0, 0, 1, 1))
        axes = self._window.axes[0]
        axes.clear()
        axes.set_axis_off()
        axes.imshow(image)
        self._window.canvas.draw_idle()
        self._window.canvas.flush_events()
        if plt.get_backend().lower() not in HEADLESS:
            self._window.show()

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            import matplotlib.pyplot as plt

            plt.close(self._window)
            self._window = None
