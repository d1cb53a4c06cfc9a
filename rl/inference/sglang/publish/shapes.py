"""Whether a server's model has the shape of ours, where its files can be seen from here.

A server tells the names of its parameters and not how large they are. Given weights of another size it fails in their
midst, and its way back goes through the same weights, so it ends; given other rotary positions, it says nothing at all.
"""

import json
from dataclasses import fields
from pathlib import Path

from envs.errors import ConfigError
from rl.models.base import DecoderConfig
from rl.models.family import Family

OF_EACH = ("context", "compute_dtype")
"""What a server may have otherwise than the trainer."""


def check_shape(family: Family, ours: DecoderConfig, folder: Path, url: str) -> None:
    """Compares the `config.json` that a server was started with. Where there is none to be seen, there is no telling.

    Args:
        family: of the model that is trained.
        ours: its shape.
        folder: what the server calls the path of its model: a folder on its host, or the name of a repository.
        url: of the server.

    Raises:
        ConfigError: naming what differs, or what the family would not compute.
    """
    file = folder / "config.json"
    if not file.is_file():
        return
    try:
        found = family.read_config(json.loads(file.read_text("utf-8")))
    except ValueError as error:  # also what the family does not compute
        raise ConfigError(
            f"the server at {url} serves {folder}, which is no {family.name} as it is trained: {error}"
        ) from error
    both = [(f.name, getattr(found, f.name), getattr(ours, f.name)) for f in fields(ours) if f.name not in OF_EACH]
    differing = [f"{name} is {its}, not {mine}" for name, its, mine in both if its != mine]
    if differing:
        raise ConfigError(
            f"the server at {url} serves {folder}, which is not the model that is trained: {', '.join(differing)}. "
            "Start it with this model: rl export writes it"
        )
