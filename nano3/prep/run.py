"""A preparation whose configuration is composed: shown, done here, or submitted."""

from pathlib import Path

from omegaconf import DictConfig

import launch
from nano3.data.build.resume_build import find_complete_data
from nano3.data.build.run import plan_request, prepare_request, print_plan
from nano3.data.dataset import output_dir
from nano3.data.dataset.manifest import Manifest
from nano3.prep.followup_run import next_job
from nano3.prep.slurm_entries import register
from nano3.prep.validate import Prep, validate


def data_prep(cfg: DictConfig) -> int:
    """Read the blend, then show, submit or do the work; returns the exit code."""
    prep = validate(cfg)
    if prep.config.dry_run:
        print_plan(prep.request)
    if prep.config.cluster.kind == "slurm":
        return on_slurm(prep)
    if prep.config.dry_run:
        return 0
    return finish(prep, prepare_request(prep.request))


def finish(prep: Prep, manifest: Manifest) -> int:
    """Register what has been made, and go on with the run that follows."""
    made = register(prep.registration, Path(prep.config.output_dir).absolute(), manifest)
    job = next_job(prep.following, prep.config.then, made.fingerprint, made.reference)
    return launch.run([job]) if job else 0


def on_slurm(prep: Prep) -> int:
    """Spread the plan over a job array; a finalizer joins and registers; the run that follows waits for it."""
    config, request = prep.config, prep.request
    output = Path(config.output_dir).absolute()
    if not config.force and not config.dry_run and (manifest := find_complete_data(request, output)):
        return finish(prep, manifest)
    planned = output_dir.build_dir(output, request.hash) / "plan.json"
    plan = planned if config.dry_run else plan_request(request)
    then = next_job(prep.following, config.then, request.content)
    return prep.array(str(plan.absolute())).run(then, config.dry_run)
