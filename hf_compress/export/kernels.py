"""The integer kernels of this machine: whether their sums of products can saturate."""

import platform
from pathlib import Path

import torch

CPU_INFO = Path("/proc/cpuinfo")
X86 = ("x86_64", "amd64", "i386", "i686")
# Each multiplies uint8 with int8 and adds four products in 32 bits. Without them, x86 adds two products in 16 bits.
EXACT = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


def saturates() -> bool:
    """Return whether int8 kernels of this CPU may saturate: it is an x86 CPU without VNNI.

    Two products of unsigned and signed 8 bits need 17 bits, but the kernels for such CPUs (`vpmaddubsw`) add them in
    16. With weights of 7 bits the sum fits.
    """
    if platform.machine().lower() not in X86:
        return False
    flags = cpu_flags()
    return not flags & EXACT if flags else not torch.cpu._is_vnni_supported()


def cpu_flags() -> frozenset[str]:
    """Return the instruction sets of the CPU as Linux names them. Empty on other systems."""
    if not CPU_INFO.is_file():
        return frozenset()
    lines = (line.partition(":") for line in CPU_INFO.read_text("utf-8", errors="replace").splitlines())
    return frozenset(next((value for name, _, value in lines if name.strip() == "flags"), "").split())
