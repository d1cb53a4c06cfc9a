"""Messages to tokens and back, such that a conversation only ever grows by exact tokens."""

from envs.render.base import Renderer
from envs.render.byte import ByteRenderer
from envs.render.load import load_renderer
from envs.render.stream import TextStream

__all__ = ["ByteRenderer", "Renderer", "TextStream", "load_renderer"]
