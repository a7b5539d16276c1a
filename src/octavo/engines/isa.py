"""Which instructions our kernels are compiled for: what this CPU has, or what OCTAVO_ISA names."""

import os
from dataclasses import dataclass, replace
from functools import cache

from octavo.errors import QuantizationError
from octavo.machine import machine


@dataclass(frozen=True, kw_only=True)
class Isa:
    """A set of instructions, and the order in which its kernels read what they multiply (`kernels/simd.h`).

    needs     of the flags of the CPU; of one that lacks some, the instructions are emulated if they can be
    flags     for the compiler, where the CPU has them
    emulated  for the compiler, where it has not; None if there is no emulation
    group     how many consecutive inputs one instruction multiplies, and so stand side by side
    vectors   of sixteen channels, that make a block
    onednn    whether oneDNN, on a CPU with no more than these, has kernels that are exact: without VNNI it adds
              products of bytes in 16 bits, which saturate
    """

    name: str
    needs: frozenset[str]
    flags: tuple[str, ...]
    emulated: tuple[str, ...] | None
    group: int
    vectors: int
    onednn: bool

    @property
    def lacking(self) -> bool:
        """Whether this CPU lacks some of it."""
        return not self.needs <= set(machine()["flags"])


AVX2 = ("-mavx2", "-mfma")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni")
# Emulated kernels are for tests, which wait longer for the compiler than for them.
EMULATED = ("-O1", "-DOCTAVO_EMULATED")

ISAS: dict[str, Isa] = {
    isa.name: isa
    for isa in (
        Isa(
            name="avx512_vnni",
            needs=frozenset({"avx512f", "avx512_vnni"}),
            flags=("-DOCTAVO_AVX512", *AVX512),
            emulated=("-DOCTAVO_AVX512", *EMULATED),
            group=4,
            vectors=4,
            onednn=True,
        ),
        Isa(
            name="avx_vnni",
            needs=frozenset({"avx2", "avx_vnni"}),
            flags=("-DOCTAVO_AVX2", *AVX2),
            emulated=("-DOCTAVO_AVX2", *AVX2),  # they are those of AVX2, beside kernels of oneDNN that are exact
            group=2,
            vectors=1,
            onednn=True,
        ),
        Isa(
            name="avx2",
            needs=frozenset({"avx2"}),
            flags=("-DOCTAVO_AVX2", *AVX2),
            emulated=None,
            group=2,
            vectors=1,
            onednn=False,
        ),
        Isa(name="plain", needs=frozenset(), flags=(), emulated=(), group=4, vectors=1, onednn=False),
    )
}


@cache
def isa() -> Isa:
    """The instructions that kernels of this process are made of: those OCTAVO_ISA names, else the fastest this CPU has.

    raises  QuantizationError for a name that is not known, or instructions that are neither there nor emulated
    """
    name = os.environ.get("OCTAVO_ISA")
    if not name:
        return next(each for each in ISAS.values() if not each.lacking)
    if name not in ISAS:
        raise QuantizationError(
            asked=f"run kernels made of the instructions {name!r}",
            seen=f"the known ones are {', '.join(ISAS)}",
            remedy="set OCTAVO_ISA to one of them, or leave it unset for the fastest that this CPU has",
            site="OCTAVO_ISA",
        )
    found = ISAS[name]
    if found.lacking and found.emulated is None:
        raise QuantizationError(
            asked=f"run kernels made of the instructions {name!r}",
            seen="this CPU lacks them, and they are not emulated",
            remedy="leave OCTAVO_ISA unset for the fastest that this CPU has",
            site="OCTAVO_ISA",
        )
    return replace(found, onednn=found.onednn and not found.lacking)  # oneDNN has what the CPU has
