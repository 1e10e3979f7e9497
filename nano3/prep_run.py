"""A preparation whose configuration is composed: shown, done here, or submitted."""

from pathlib import Path

from omegaconf import DictConfig

import launch
from nano3 import places
from nano3.data import folder
from nano3.data.planner import read_request
from nano3.data.run import complete, plan_request, prepare, show_plan
from nano3.prep_check import Prep, checked
from nano3.prep_next import next_job
from nano3.prep_tasks import register


def data_prep(cfg: DictConfig) -> int:
    """Read the blend, then show, submit or do the work; returns the exit code."""
    prep = checked(cfg)
    if prep.config.dry_run:
        show_plan(prep.sources, prep.options, prep.blend)
    if prep.config.cluster.kind == "slurm":
        return on_slurm(prep)
    if prep.config.dry_run:
        return 0
    return here(prep)


def here(prep: Prep) -> int:
    """Prepare on this machine, register, and go on with the run that follows."""
    manifest = prepare(prep.sources, prep.options, prep.blend)
    made = register(prep.registration, Path(prep.options.output_dir).absolute(), manifest)
    job = next_job(prep.following, prep.config.then, made.fingerprint, made.reference)
    return launch.run([job]) if job else 0


def on_slurm(prep: Prep) -> int:
    """Spread the plan over a job array; a finalizer joins and registers; the run that follows waits for it."""
    config, options = prep.config, prep.options
    request = read_request(prep.sources, options, prep.blend)
    output = Path(options.output_dir).absolute()
    if not options.force and not config.dry_run and (manifest := complete(request, output)):
        made = register(prep.registration, output, manifest)
        job = next_job(prep.following, prep.config.then, made.fingerprint, made.reference)
        return launch.run([job]) if job else 0
    planned = folder.build_dir(output, request.hash) / "plan.json"
    plan = planned if config.dry_run else plan_request(request)
    return launch.run_array(
        f"prep-{prep.blend}",
        Path(config.job_dir, f"prep-{prep.blend}"),
        entry="nano3.prep_tasks:part",
        args=(str(plan.absolute()), str(output), prep.registration.to_text()),
        tasks=config.cluster.tasks,
        finalize="nano3.prep_tasks:finish",
        cluster=config.cluster,
        container=config.container,
        folders=places.of_preparation(options, prep.sources),
        then=next_job(prep.following, prep.config.then, request.content),
        dry_run=config.dry_run,
    )
