"""Run a data preparation on this machine or submit it to Slurm."""

from pathlib import Path

from omegaconf import DictConfig

import launch
from launch.check import check_not_torchrun
from nano3.data.build.resume_build import find_complete_data
from nano3.data.build.run import complete_publishing, prepare_request, print_plan, write_plan
from nano3.data.dataset import output_dir
from nano3.data.dataset.manifest import Manifest
from nano3.prep.registration import register
from nano3.prep.validate import Preparation, validate
from nano3.utils.files import expand_user


def data_prep(cfg: DictConfig) -> int:
    """Validate the configuration, then show, submit, or run the preparation.

    Args:
        cfg: Composed configuration of `nano3.data_prep`.

    Returns:
        Exit code.
    """
    check_not_torchrun("prepare the same data")
    if not cfg.dry_run:
        complete_publishing(expand_user(cfg.output_dir))
    prep = validate(cfg)
    if prep.config.dry_run:
        print_plan(prep.request)
    if prep.config.cluster.kind == "slurm":
        return submit_to_slurm(prep)
    if prep.config.dry_run:
        job = followup_job(prep, prep.request.content)
        return launch.run([job], dry_run=True) if job else 0
    manifest = prepare_request(prep.request)
    return register_and_follow(prep, manifest)


def submit_to_slurm(prep: Preparation) -> int:
    """Submit a job array for the plan, a finalizer, and the follow-up run; show them in a dry run.

    If the output folder already holds complete data, register it and submit only the follow-up run.
    """
    config, request = prep.config, prep.request
    output = Path(config.output_dir).absolute()
    if not config.force and not config.dry_run and (manifest := find_complete_data(request, output)):
        return register_and_follow(prep, manifest)
    planned = output_dir.build_dir(output, request.hash) / "plan.json"
    plan = planned if config.dry_run else write_plan(request)
    return prep.array(str(plan.absolute())).run(followup_job(prep, request.content), config.dry_run)


def register_and_follow(prep: Preparation, manifest: Manifest) -> int:
    """Register the prepared data and start the follow-up run, if any. Return the exit code."""
    artifact = register(prep.registration, Path(prep.config.output_dir).absolute(), manifest)
    job = followup_job(prep, artifact.fingerprint, artifact.reference)
    return launch.run([job]) if job else 0


def followup_job(prep: Preparation, content: str, reference: str | None = None) -> launch.Job | None:
    """Return the job of the follow-up run, or None without `--then`.

    Args:
        prep: The validated preparation.
        content: Content fingerprint of the data.
        reference: Artifact reference of the data; None while it is not registered.
    """
    if prep.followup is None:
        return None
    from nano3.prep.followup_run import make_followup_job  # imports nano3.training

    vocab_size = None if reference else prep.request.tokenizer.vocab_size
    return make_followup_job(prep.followup, prep.config.then, content, reference, vocab_size)
