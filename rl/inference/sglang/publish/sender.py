"""Broadcasts tensors to SGLang servers. Runs as a process of its own with the Python that has torch, SGLang's.

Takes a line of JSON at a time and answers each with one:
    {"join": {"host", "port", "world_size", "group", "backend", "timeout"}}   rank 0 of a group; waits for the others
    {"send": {"path", "head", "tensors": [[name, dtype, shape, offset], …]}}  each of them, in order
    {"leave": {}}
"""

import datetime
import json
import mmap
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

_group: Any = None
_device = "cpu"


def join(host: str, port: int, world_size: int, group: str, backend: str, timeout: float) -> None:
    """As `init_custom_process_group` in sglang/srt/utils/common.py, whose servers are the other ranks."""
    global _group, _device
    _device = "cuda" if backend == "nccl" else "cpu"
    limit = datetime.timedelta(seconds=timeout)
    store = dist.TCPStore(host, port, world_size, is_master=True, timeout=limit, wait_for_workers=False)
    _group, _ = c10d._new_process_group_helper(
        world_size, 0, [], c10d.Backend(backend), c10d.PrefixStore(group, store), group_name=group, timeout=limit
    )
    c10d._world.pg_group_ranks[_group] = {rank: rank for rank in range(world_size)}


def send(path: str, head: int, tensors: list[tuple[str, str, list[int], int]]) -> None:
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as memory:
        waiting = []
        for _, dtype, shape, offset in tensors:
            kind = getattr(torch, dtype)
            count = torch.Size(shape).numel()
            tensor = torch.frombuffer(memory, dtype=kind, count=count, offset=head + offset).view(shape)
            waiting.append((dist.broadcast(tensor.to(_device), src=0, group=_group, async_op=True), tensor))
        for work, _ in waiting:
            work.wait()
        del waiting, tensor


def leave() -> None:
    global _group
    if _group is not None:
        dist.destroy_process_group(_group)
        _group = None


VERBS: dict[str, Callable[..., None]] = {"join": join, "send": send, "leave": leave}


def main() -> None:
    for line in sys.stdin:
        ((verb, arguments),) = json.loads(line).items()
        try:
            VERBS[verb](**arguments)
            answer = {"done": verb}
        except Exception as error:  # noqa: BLE001  told to whoever asked
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
