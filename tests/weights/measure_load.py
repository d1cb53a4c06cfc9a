"""Loads a checkpoint and prints how far the memory of this process rose meanwhile, beyond what the parameters take.

python tests/weights/measure_load.py WARM_UP DIRECTORY [DTYPE]
"""

import sys
from pathlib import Path

import jax

from rl.models.base import Params
from rl.parallel.mesh import make_mesh, parameter_shardings
from rl.weights.load import load
from rl.weights.source import family_of, open_source, shape_of


def run(folder: str, dtype: str) -> Params:
    source = open_source(Path(folder))
    family = family_of(source)
    model = family.build(shape_of(source))
    return load(source, family, model, parameter_shardings(make_mesh({"data": 1}), model.axes, {}), dtype)


def memory(key: str) -> int:
    """Bytes of resident memory: now (VmRSS) or at most so far (VmHWM)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


warm_up, folder, dtype = sys.argv[1:]
run(warm_up, dtype)  # the compiler's own memory is no part of what is measured
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = memory("VmRSS")
params = run(folder, dtype)
held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(memory("VmHWM") - before - held, held)
