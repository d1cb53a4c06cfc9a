"""Checkpoints of other tools, in and out: Hugging Face directories both ways, GGUF files in.

`open_source` finds a checkpoint, `load` lays its tensors out as parameters, `save` writes parameters as a directory.
Only names, shapes and layouts are known here; how a family names its tensors is in `rl.models`.
"""
