"""The system calls that sandboxed code does not get, as a program for the kernel's filter (classic BPF).

Left out is what namespaces and resource limits do not hold: new namespaces and mounts, looking into other processes,
kernel interfaces with a history of holes, memory that no limit counts (memfd, System V), and socket families
that reach past the network namespace (vsock: out of a virtual machine).
"""

import errno
import os
import struct
from collections.abc import Sequence

from envs.errors import ConfigError

_COMMON = {  # the numbers since 424 are the same everywhere
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_getfd": 438,
    "process_madvise": 440, "mount_setattr": 442, "memfd_secret": 447,
}  # fmt: skip
_X86_64 = {
    "shmget": 29, "shmat": 30, "semget": 64, "msgget": 68, "ptrace": 101, "personality": 135, "pivot_root": 155,
    "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167, "swapoff": 168, "reboot": 169,
    "init_module": 175, "delete_module": 176, "quotactl": 179, "mbind": 237, "kexec_load": 246, "add_key": 248,
    "request_key": 249, "keyctl": 250, "migrate_pages": 256, "unshare": 272, "move_pages": 279, "perf_event_open": 298,
    "fanotify_init": 300, "name_to_handle_at": 303, "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310,
    "process_vm_writev": 311, "kcmp": 312, "finit_module": 313, "memfd_create": 319, "kexec_file_load": 320, "bpf": 321,
    "userfaultfd": 323,
}  # fmt: skip
_AARCH64 = {
    "umount2": 39, "mount": 40, "pivot_root": 41, "quotactl": 60, "acct": 89, "personality": 92, "unshare": 97,
    "kexec_load": 104, "init_module": 105, "delete_module": 106, "ptrace": 117, "reboot": 142, "settimeofday": 170,
    "msgget": 186, "semget": 190, "shmget": 194, "shmat": 196, "add_key": 217, "request_key": 218, "keyctl": 219,
    "swapon": 224, "swapoff": 225, "mbind": 235, "migrate_pages": 238, "move_pages": 239, "perf_event_open": 241,
    "fanotify_init": 262, "name_to_handle_at": 264, "open_by_handle_at": 265, "setns": 268, "process_vm_readv": 270,
    "process_vm_writev": 271, "kcmp": 272, "finit_module": 273, "memfd_create": 279, "bpf": 280, "userfaultfd": 282,
    "kexec_file_load": 294,
}  # fmt: skip
# Audit architecture, refused calls, clone, socket.
_MACHINES = {
    "x86_64": (0xC000003E, _X86_64, 56, 41),
    "aarch64": (0xC00000B7, _AARCH64, 220, 198),
}
_CLONE3 = 435
_NAMESPACES = 0x7E020000  # CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
_X32 = 0x40000000
_FAMILIES = (1, 2, 10, 16)  # unix, inet, inet6, netlink

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16  # offsets into seccomp_data; of an argument, the low half
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000


def seccomp_filter(machine: str = "") -> bytes:
    """The filter's instructions, 8 bytes each, as the kernel and `bwrap --seccomp` read them.

    Refused calls fail with EPERM; `clone3` with ENOSYS, after which libc takes `clone`, whose flags can be read.

    Args:
        machine: as `uname -m` says it; by default this one.

    Raises:
        ConfigError: for a machine whose system calls are not known here.
    """
    machine = machine or os.uname().machine
    if machine not in _MACHINES:
        raise ConfigError(
            f"no system call filter for the machine '{machine}'; known: {', '.join(_MACHINES)}; use another backend"
        )
    architecture, own, clone, socket = _MACHINES[machine]
    refused = sorted({*own.values(), *_COMMON.values()})
    program = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, architecture, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
        _step(_AT_LEAST, _X32, 0, 1),
        _step(_RETURN, _FAIL | errno.ENOSYS),
        _step(_EQUAL, _CLONE3, 0, 1),
        _step(_RETURN, _FAIL | errno.ENOSYS),
        *_where(clone, [_step(_LOAD, _ARGUMENT), _step(_ANY_BIT, _NAMESPACES, 0, 1), _fail(), _allow()]),
        *_where(socket, [_step(_LOAD, _ARGUMENT), *_one_of(_FAMILIES), _fail(), _allow()]),
    ]
    for number in refused:
        program += [_step(_EQUAL, number, 0, 1), _fail()]
    return b"".join([*program, _allow()])


def _where(number: int, then: Sequence[bytes]) -> list[bytes]:
    """`then`, which returns, for one system call; it is jumped over for others."""
    return [_step(_EQUAL, number, 0, len(then)), *then]


def _one_of(values: Sequence[int]) -> list[bytes]:
    """Jumps over the next instruction after these if the accumulator is one of the values."""
    return [_step(_EQUAL, value, len(values) - i, 0) for i, value in enumerate(values)]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _fail() -> bytes:
    return _step(_RETURN, _FAIL | errno.EPERM)


def _allow() -> bytes:
    return _step(_RETURN, _ALLOW)
