"""The textures of a simulated scene: read, given other pixels, and given their own again."""

from typing import Any

import numpy as np


class Textures:
    """The textures of a MuJoCo model that a renderer holds copies of; each is named by its id."""

    def __init__(self, model: Any, environment: Any) -> None:
        """`model` is mujoco's, of an environment of LIBERO.

        The environment's renderer is not kept: one that outlived it would take another's place in OpenGL with it.
        """
        self._model, self._environment = model, environment
        self._before: dict[int, np.ndarray] = {}

    def pixels(self, texture: int) -> np.ndarray:
        """A texture's pixels, uint8 (height, width, 3) RGB; of a cube those of each side."""
        return self._flat(texture).reshape(
            int(self._model.tex_height[texture]), int(self._model.tex_width[texture]), -1
        )

    def cover(self, texture: int, pixels: np.ndarray) -> None:
        """Give a texture other pixels, of the same shape, until `undo`."""
        self._before.setdefault(texture, self._flat(texture).copy())
        self._upload(texture, pixels)

    def undo(self) -> None:
        """Give every texture its own pixels again."""
        for texture, pixels in self._before.items():
            self._upload(texture, pixels)
        self._before = {}

    def _flat(self, texture: int) -> np.ndarray:
        model = self._model
        begin = int(model.tex_adr[texture])
        size = int(model.tex_height[texture]) * int(model.tex_width[texture]) * int(model.tex_nchannel[texture])
        flat: np.ndarray = model.tex_data[begin : begin + size]
        return flat

    def _upload(self, texture: int, pixels: np.ndarray) -> None:
        import mujoco

        self._flat(texture)[:] = pixels.ravel()
        context = self._environment.sim._render_context_offscreen
        context.gl_ctx.make_current()
        mujoco.mjr_uploadTexture(self._model, context.con, texture)
