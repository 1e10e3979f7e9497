"""The points of a sweep over `nano3.data_prep`: kept apart, validated together, and run one after another."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from launch.hydra_launcher import Point, PointEnd, problems_of_points
from nano3.artifacts.names import slugify
from nano3.cli.override_errors import EXPECTED_ERRORS, explain_error
from nano3.prep.run import data_prep
from nano3.prep.validate import blend_name, validate
from nano3.utils.command_line import CommandLine
from nano3.utils.console import print_problems, say
from nano3.utils.disk_errors import translate_disk_errors
from nano3.utils.errors import Nano3Error, UserError, common_kind


def run_points(points: Sequence[Point], learns: bool) -> list[PointEnd]:
    """Validate all points, prepare one after another, and return how each ended.

    Args:
        points: The points.
        learns: Whether their sweeper learns from results, which a preparation has none of.

    Raises:
        Nano3Error: With the problems of all points.
    """
    check_sweep(points, learns)
    separate_points(points)
    ends = []
    for number, point in enumerate(points, 1):
        say(f"# ---- point {number} of {len(points)}: {' '.join(point.overrides)}")
        ends.append(prepare(point))
    say(f"{sum(end.code == 0 for end in ends)} of {len(points)} points finished")
    return ends


def check_sweep(points: Sequence[Point], learns: bool) -> None:
    """Raise UserError if preparations cannot be swept in this way.

    Args:
        points: The points.
        learns: Whether their sweeper learns from results, which a preparation has none of.
    """
    if learns:
        raise UserError("A preparation has no result to optimize: leave out hydra/sweeper, or sweep nano3.pretrain.")
    if any(point.config.then for point in points):
        raise UserError("--then follows one preparation, not a sweep: sweep nano3.pretrain over the prepared data")


def prepare(point: Point) -> PointEnd:
    """Prepare one point and print its errors."""
    point.activate()
    try:
        with translate_disk_errors("standard output"):
            return PointEnd(data_prep(point.config))
    except EXPECTED_ERRORS as error:
        explained = explain_error(error, "data_prep", CommandLine.parse(point.overrides))
        print_problems(explained.problems)
        return PointEnd(explained.exit_code, reason=f"point {point.label}: {explained}")


def separate_points(points: Sequence[Point]) -> None:
    """Give each point its own folder and alias if they would collide, and validate all points.

    Folders become output_dir/LABEL and job_dir/LABEL, aliases ALIAS-LABEL.

    Args:
        points: The points; their configurations are changed in place.

    Raises:
        Nano3Error: With the problems of all points.
    """
    folders = [str(Path(point.config.output_dir).absolute()) for point in points]
    names = [alias_of(point.config) for point in points]
    errors: dict[str, Nano3Error] = {}
    for point, folder, name in zip(points, folders, names, strict=True):
        separate(point, own_folder=folders.count(folder) == 1, own_name=names.count(name) == 1)
        point.activate()
        try:
            validate(point.config)
        except Nano3Error as error:
            errors[point.label] = error
    if errors:
        raise common_kind(errors.values())(problems_of_points(errors, len(points)))


def alias_of(cfg: DictConfig) -> str:
    """Return the name under which a preparation will be registered."""
    return str(cfg.alias or blend_name(cfg.blend_path, cfg.data_blend.name))


def separate(point: Point, own_folder: bool, own_name: bool) -> None:
    """Give a point folders and an alias with its label.

    Args:
        point: The point; its configuration is changed in place.
        own_folder: No other point has its output_dir.
        own_name: No other point has its alias.
    """
    cfg = point.config
    if cfg.output_dir and not own_folder:
        cfg.output_dir = str(Path(cfg.output_dir, point.label))
    if not own_name:
        cfg.alias = slugify(f"{alias_of(cfg)}-{point.label}")
        cfg.job_dir = str(Path(cfg.job_dir, point.label))


def run_point(point: Point, learns: bool) -> PointEnd:
    """Prepare one point in this process, for a launcher other than nano3's, and return how it ended.

    The other points are not known here, so the point gets its own folder and alias unless the sweep varies these keys.

    Args:
        point: The point.
        learns: Whether its sweeper learns from results, which a preparation has none of.
    """
    check_sweep([point], learns)
    separate(point, own_folder="output_dir" in point.varying_keys, own_name="alias" in point.varying_keys)
    return PointEnd(data_prep(point.config))
