"""Find out which units and shards of a build are finished.

A shard's receipt is valid if its files have the right size and, for the process that publishes, the right checksums. A
unit's receipt is valid if each fragment has the right checksum or is in a finished shard. Only fragments that are not
yet merged are read, so resuming stays cheap.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from nano3.data.build.receipts import (
    Fragment,
    ShardReceipt,
    UnitReceipt,
    add_suffix,
    read_receipt,
    shard_receipt_path,
    unit_hashes_path,
    unit_receipt_path,
)
from nano3.data.dataset.checksum import checksum
from nano3.data.planning.plan import Plan
from nano3.data.tokenization.engines import FAST, REFERENCE
from nano3.utils.console import warn
from nano3.utils.files import write_text

READ_THREADS = 8
Shard = tuple[int, int, int]  # split, dataset, number of the shard in them
MISMATCH_MARKER = "fastokens-disproved"  # file of a build in which the fast engine was wrong; says why
VERIFIED_MARKER = "fastokens-proven"  # file of a build in which the engines were compared and agreed


class BuildState:
    """The finished and the open units and shards of a build.

    Attributes:
        plan: The plan.
        build: Folder of the build.
        unit_range: Numbers of the units that this process works on.
        shards: Valid receipts of shards.
        units: Valid receipts of units in `unit_range`, by number.
    """

    def __init__(self, plan: Plan, build: Path, units: range | None = None) -> None:
        self.plan = plan
        self.build = build
        self.unit_range = units if units is not None else range(plan.units)
        self.shards: dict[Shard, ShardReceipt] = {}
        self.units: dict[int, UnitReceipt] = {}
        self._fragments: dict[Shard, dict[int, Fragment]] = {}  # by number of the unit
        shards = plan.shards()
        with ThreadPoolExecutor(READ_THREADS) as threads:
            for shard, shard_receipt in zip(shards, threads.map(self._read_shard, shards), strict=True):
                if shard_receipt:
                    self.shards[shard] = shard_receipt
        for number in self.unit_range:
            if unit_receipt := self._read_unit(number):
                self.add_unit(unit_receipt)

    def add_unit(self, receipt: UnitReceipt) -> None:
        """Add a finished unit."""
        self.units[receipt.unit] = receipt
        dataset = self.plan.unit(receipt.unit)[0]
        for fragment in receipt.fragments:
            self._fragments.setdefault((fragment.split, dataset, fragment.shard), {})[receipt.unit] = fragment

    def shard_fragments(self, shard: Shard) -> tuple[list[Fragment], str]:
        """Return the fragments of a shard in the order of their units, and the engine.

        A unit may have fragments of all shards, so its receipt is not searched for those of one shard. The engine is
        "fastokens" if any of the fragments was encoded by it, else "tokenizers".
        """
        found = self._fragments.get(shard, {})
        fast = any(self.units[n].engine == FAST for n in found)
        return [found[n] for n in sorted(found)], FAST if fast else REFERENCE

    def _read_shard(self, shard: Shard) -> ShardReceipt | None:
        """Return a shard's receipt if it is valid: its files are complete and its engine is trusted."""
        receipt = read_receipt(shard_receipt_path(self.build, self.plan, *shard), ShardReceipt)
        if receipt is None or (receipt.engine == FAST and self.mismatched):
            return None
        if receipt.name is None:
            return receipt
        bin_file, idx_file = self.build / f"{receipt.name}.bin", self.build / f"{receipt.name}.idx"
        if file_size(bin_file) != receipt.bin_bytes or not idx_file.exists():
            return None
        if len(self.unit_range) < self.plan.units:  # the shards of other tasks: read only once, before publishing
            return receipt
        intact = (file_checksum(bin_file), file_checksum(idx_file)) == (receipt.bin_xxh128, receipt.idx_xxh128)
        if not intact:
            warn(f"{bin_file.with_suffix('')}: this shard was damaged on the disk after it was written; it is rebuilt")
        return receipt if intact else None

    def _read_unit(self, number: int) -> UnitReceipt | None:
        """Return a unit's receipt if it is valid.

        Its hashes of texts must be intact. Each fragment must be intact, be in a finished shard, or have been renamed
        to its shard's .bin.
        """
        receipt = read_receipt(unit_receipt_path(self.build, number), UnitReceipt)
        if receipt is None or (receipt.engine == FAST and self.mismatched):
            return None
        if receipt.hash_xxh128 and file_checksum(unit_hashes_path(self.build, number)) != receipt.hash_xxh128:
            return None
        dataset = self.plan.unit(number)[0]
        for fragment in receipt.fragments:
            if (fragment.split, dataset, fragment.shard) in self.shards:
                continue
            path = self.build / "units" / fragment.name
            moved = self.build / f"{self.plan.shard_name(fragment.split, dataset, fragment.shard)}.bin"
            intact = fragment.bin_xxh128 in (file_checksum(add_suffix(path, ".bin")), file_checksum(moved))
            if not intact or file_checksum(add_suffix(path, ".len")) != fragment.len_xxh128:
                return None
        return receipt

    @property
    def mismatched(self) -> bool:
        """Whether the fast engine gave wrong ids in this build."""
        return (self.build / MISMATCH_MARKER).exists()

    @property
    def mismatch(self) -> str:
        """What the fast engine got wrong; only if `mismatched`."""
        return (self.build / MISMATCH_MARKER).read_text().strip()

    @property
    def verified(self) -> bool:
        """Whether the engines were compared in this build and agreed."""
        return (self.build / VERIFIED_MARKER).exists()

    def mark_verified(self) -> None:
        """Record that the engines were compared and agreed."""
        write_text(self.build / VERIFIED_MARKER, "")

    def mark_mismatch(self, why: str) -> None:
        """Record that the fast engine is wrong and drop everything it encoded in this build."""
        write_text(self.build / MISMATCH_MARKER, why + "\n")
        kept = [receipt for receipt in self.units.values() if receipt.engine != FAST]
        self.units, self._fragments = {}, {}
        for receipt in kept:
            self.add_unit(receipt)
        self.shards = {k: r for k, r in self.shards.items() if r.engine != FAST}

    def open_units(self) -> list[int]:
        """Return the numbers of the nonempty units that are not finished."""
        return [n for n in self._nonempty_units if n not in self.units]

    @cached_property
    def _nonempty_units(self) -> list[int]:
        """Numbers of the units in `unit_range` that read any file."""
        found = []
        for number in self.unit_range:
            dataset, unit = self.plan.unit(number)
            if self.plan.datasets[dataset].file_ranges(unit):
                found.append(number)
        return found

    def mergeable_shards(self) -> list[tuple[Shard, int, int]]:
        """Return those of `open_shards` that can be merged while other units are open: none with dedup=exact."""
        return [] if self.plan.drops_documents else self.open_shards()

    def open_shards(self) -> list[tuple[Shard, int, int]]:
        """Return (shard, first unit, last unit) of the unfinished shards whose units are all in `unit_range`.

        Sorted by last unit. A shard that no unit can fill belongs to the process that works on all units.
        """
        found = []
        for shard in self.plan.shards():
            if shard in self.shards:
                continue
            split, dataset, number = shard
            first, last = self.plan.datasets[dataset].units_of_shard(split, number)
            base = self.plan.first_units[dataset]
            if (first <= last and base + first in self.unit_range and base + last in self.unit_range) or (
                first > last and len(self.unit_range) == self.plan.units
            ):
                found.append((shard, base + first, base + last))
        return sorted(found, key=lambda item: item[2])


def file_size(path: Path) -> int:
    """Return the size of a file in bytes, or -1 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def file_checksum(path: Path) -> str:
    """Return the checksum of a file, or "" if there is none."""
    try:
        return checksum(path)
    except FileNotFoundError:
        return ""
