"""Names made of user input, safe for file systems and for Slurm."""

import hashlib
import re
from collections.abc import Collection, Sequence

from nano3.utils.command_line import OverrideWord
from nano3.utils.errors import UserError

_MAX_LABEL = 120


def slurm_job_name(text: str) -> str:
    """Return `text` as a Slurm job name: letters, digits, dot, dash and underscore, at most 100 characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:100] or "job"


def natural_order(text: object) -> list[tuple[int, str]]:
    """Return a key that sorts names with numbers as people do: seed=2 before seed=10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(text))]


def sweep_labels(
    points: Sequence[Sequence[str]], fixed: Collection[str] | None = None, unique: bool = True
) -> list[str]:
    """Return one folder name for each sweep point, made of the overrides whose value varies, sorted by key.

    The same overrides give the same label in every invocation, in any order on the command line. If no key varies, the
    label has all overrides except those of Hydra and of the cluster.

    Args:
        points: The overrides ("key=value") of each point.
        fixed: The keys that do not vary in the sweep. Needed for some of its points; with None, `points` are all.
        unique: Whether equal points are an error.

    Raises:
        UserError: Two points are equal.
    """
    parsed = [{o.key: o.value or "" for o in map(OverrideWord.parse, point)} for point in points]
    keys = sorted({key for point in parsed for key in point})
    if fixed is None:
        wanted = [key for key in keys if len({point.get(key) for point in parsed}) > 1]
    else:
        wanted = [key for key in keys if key not in fixed and not key.startswith(("hydra.", "hydra/"))]
    if not wanted and len(parsed) == 1:
        wanted = [key for key in keys if not key.startswith(("hydra.", "hydra/", "cluster."))]
    labels = [_label({key: point[key] for key in wanted if key in point}) for point in parsed]
    duplicates = {
        tuple(sorted(point.items())) for point, label in zip(parsed, labels, strict=True) if labels.count(label) > 1
    }
    if duplicates and unique:
        texts = [" ".join(f"{key}={value}" for key, value in point) for point in sorted(duplicates)]
        raise UserError([f"The sweep has the same point twice: {text}. Give every value once." for text in texts])
    return labels


def _label(values: dict[str, str]) -> str:
    raw = "__".join(f"{key}={value}" for key, value in values.items()) or "point"
    safe = re.sub(r"[^A-Za-z0-9._=+-]", "_", raw)
    if safe == raw and len(raw) <= _MAX_LABEL:
        return safe
    return f"{safe[:_MAX_LABEL]}-{hashlib.sha256(raw.encode(errors='surrogatepass')).hexdigest()[:8]}"
