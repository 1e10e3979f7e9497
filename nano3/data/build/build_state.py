"""What of a build is done.

A shard's receipt is believed when its files have the right size. A unit's is believed when its parts have the right
checksums, or are in a finished shard; only parts that no shard has taken yet are read for it, so starting again
stays cheap.
"""

from pathlib import Path

from nano3.data.build.receipts import ShardReceipt, UnitReceipt, add_suffix, read_receipt, shard_receipt, unit_receipt
from nano3.data.dataset.checksum import checksum
from nano3.data.planning.plan import Plan
from nano3.data.tokenization.engines import FAST
from nano3.utils.files import write_text

Shard = tuple[int, int, int]  # split, dataset, shard in it
MISMATCH_MARKER = "fastokens-disproved"
VERIFIED_MARKER = "fastokens-proven"


class BuildState:
    """The units and shards of a plan that are done, and those to do. `units` and `shards` hold the receipts."""

    def __init__(self, plan: Plan, build: Path, units: range | None = None) -> None:
        self.plan = plan
        self.build = build
        self.range = units if units is not None else range(plan.units)
        self.shards: dict[Shard, ShardReceipt] = {}
        self.units: dict[int, UnitReceipt] = {}
        for shard in plan.shards():
            if receipt := self.valid_shard(shard):
                self.shards[shard] = receipt
        for number in self.range:
            if receipt_u := self.valid_unit(number):
                self.units[number] = receipt_u

    def valid_shard(self, shard: Shard) -> ShardReceipt | None:
        """The shard's receipt if its files are there; a shard made by a disproved engine is not valid."""
        receipt = read_receipt(shard_receipt(self.build, self.plan, *shard), ShardReceipt)
        if receipt is None or (receipt.engine == FAST and self.disproved):
            return None
        if receipt.name is None:
            return receipt
        fine = file_size(self.build / f"{receipt.name}.bin") == receipt.bin_bytes
        return receipt if fine and (self.build / f"{receipt.name}.idx").exists() else None

    def valid_unit(self, number: int) -> UnitReceipt | None:
        """The unit's receipt if each of its parts is there, is in a finished shard, or has just been given its
        shard's name.
        """
        receipt = read_receipt(unit_receipt(self.build, number), UnitReceipt)
        if receipt is None or (receipt.engine == FAST and self.disproved):
            return None
        dataset = self.plan.unit(number)[0]
        for part in receipt.parts:
            if (part.split, dataset, part.shard) in self.shards:
                continue
            path = self.build / "units" / part.name
            moved = self.build / f"{self.plan.shard_name(part.split, dataset, part.shard)}.bin"
            here = part.bin_xxh128 in (file_checksum(add_suffix(path, ".bin")), file_checksum(moved))
            if not here or file_checksum(add_suffix(path, ".len")) != part.len_xxh128:
                return None
        return receipt

    @property
    def disproved(self) -> bool:
        """Whether the fast engine was seen to be wrong in this build."""
        return (self.build / MISMATCH_MARKER).exists()

    @property
    def why_disproved(self) -> str:
        """What was wrong with it."""
        return (self.build / MISMATCH_MARKER).read_text().strip()

    @property
    def proven(self) -> bool:
        """Whether the engines were compared in this build, and agreed."""
        return (self.build / VERIFIED_MARKER).exists()

    def prove(self, wrong: str) -> None:
        """Note the outcome of the comparison; one that failed is for `disprove` to note."""
        if not wrong:
            write_text(self.build / VERIFIED_MARKER, "")

    def disprove(self, why: str) -> None:
        """Distrust everything the fast engine made in this build."""
        write_text(self.build / MISMATCH_MARKER, why + "\n")
        self.units = {n: r for n, r in self.units.items() if r.engine != FAST}
        self.shards = {k: r for k, r in self.shards.items() if r.engine != FAST}

    def open_units(self) -> list[int]:
        """Numbers of the units to do that hold anything."""
        return [n for n in self.range if n not in self.units and self.holds(n)]

    def holds(self, number: int) -> bool:
        """Whether any file starts or goes on in a unit."""
        dataset, unit = self.plan.unit(number)
        return bool(self.plan.datasets[dataset].file_ranges(unit))

    def open_shards(self) -> list[tuple[Shard, int, int]]:
        """(shard, first unit, last unit) of shards to join whose units all are in this range, by last unit."""
        found = []
        for shard in self.plan.shards():
            if shard in self.shards:
                continue
            split, dataset, number = shard
            first, last = self.plan.datasets[dataset].units_of_shard(split, number)
            base = self.plan.first_units[dataset]
            if (first <= last and base + first in self.range and base + last in self.range) or (
                first > last and len(self.range) == self.plan.units
            ):
                found.append((shard, base + first, base + last))
        return sorted(found, key=lambda item: item[2])


def file_size(path: Path) -> int:
    """Bytes in a file, -1 when there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def file_checksum(path: Path) -> str:
    """Checksum of a file, "" when there is none."""
    try:
        return checksum(path)
    except FileNotFoundError:
        return ""
