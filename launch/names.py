"""Names that come from users, made safe for file systems and for Slurm; and Slurm's time format."""

import hashlib
import re
from collections.abc import Sequence

from nano3.utils.command_line import OverrideWord
from nano3.utils.errors import UserError

_MAX_LABEL = 120


def safe_name(text: str) -> str:
    """`text` as a Slurm job name: letters, digits, dot, dash and underscore, at most 100 characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:100] or "job"


def time_seconds(text: str) -> int | None:
    """Seconds of a Slurm time limit: "M", "M:S", "H:M:S", "D-H", "D-H:M" or "D-H:M:S" (sbatch(1), --time). None: no
    limit.

    Raises ValueError for anything else.
    """
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        raise ValueError(text)
    days, *fields = match.groups()
    numbers = [int(f) for f in fields if f is not None]
    if days is not None:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
        return int(days) * 86400 + hours * 3600 + minutes * 60 + seconds
    if len(numbers) == 1:
        return numbers[0] * 60
    hours, minutes, seconds = [0, *numbers][-3:]
    return hours * 3600 + minutes * 60 + seconds


def sweep_labels(points: Sequence[Sequence[str]]) -> list[str]:
    """One folder name for each point of a sweep, made of the overrides whose value varies, sorted by key.

    The same overrides give the same label in every invocation, whatever their order on the command line. A single point
    is named by all its overrides but those of Hydra and of the cluster. Two equal points are a `UserError`.
    """
    parsed = [{o.key: o.value or "" for o in map(OverrideWord.parse, point)} for point in points]
    keys = sorted({key for point in parsed for key in point})
    if len(parsed) > 1:
        wanted = [key for key in keys if len({point.get(key) for point in parsed}) > 1]
    else:
        wanted = [key for key in keys if not key.startswith(("hydra.", "hydra/", "cluster."))]
    labels = [_label({key: point[key] for key in wanted if key in point}) for point in parsed]
    twice = {
        tuple(sorted(point.items())) for point, label in zip(parsed, labels, strict=True) if labels.count(label) > 1
    }
    if twice:
        told = [" ".join(f"{key}={value}" for key, value in point) for point in sorted(twice)]
        raise UserError([f"The sweep has the same point twice: {point}. Give every value once." for point in told])
    return labels


def _label(values: dict[str, str]) -> str:
    raw = "__".join(f"{key}={value}" for key, value in values.items()) or "point"
    safe = re.sub(r"[^A-Za-z0-9._=+-]", "_", raw)
    if safe == raw and len(raw) <= _MAX_LABEL:
        return safe
    return f"{safe[:_MAX_LABEL]}-{hashlib.sha256(raw.encode(errors='surrogatepass')).hexdigest()[:8]}"
