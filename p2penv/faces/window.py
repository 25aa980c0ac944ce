"""Matplotlib figures as pixels or in a window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """Figure as an ``(height, width, 3)`` array."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def show(figure: Figure, window: Any = None) -> Any:
    """Show the figure in a window, a new one if none is given; without a display nothing is shown."""
    import matplotlib.pyplot as plt

    image = pixels(figure)
    if window is None:
        window = plt.figure(figsize=figure.get_size_inches())
        window.add_axes((0, 0, 1, 1)).set_axis_off()
    axes = window.axes[0]
    axes.clear()
    axes.set_axis_off()
    axes.imshow(image)
    window.canvas.draw_idle()
    window.canvas.flush_events()
    if plt.get_backend().lower() not in ("agg", "pdf", "svg", "ps", "cairo", "template"):
        window.show()
    return window


def close(window: Any) -> None:
    """Close a window of :func:`show`."""
    import matplotlib.pyplot as plt

    plt.close(window)
