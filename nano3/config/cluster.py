"""Group `cluster`: where jobs run.

A profile describes a machine, not an experiment: it has no container image and no batch size.
"""

from dataclasses import dataclass, field


@dataclass
class ClusterConfig:
    """Where jobs run: `cluster=local` on this machine, `cluster=slurm` on a Slurm cluster.

    Add a profile of your own as `conf/cluster/<name>.yaml` or `$NANO3_CONF/cluster/<name>.yaml`.
    """

    # Where jobs run: local (this machine) or slurm (submit to Slurm).
    kind: str = "local"
    # Number of ranks to start on this machine (kind=local). More than one rank is started with torchrun.
    nproc_per_node: int = 1

    # What to do after submitting to Slurm: attached (stream the log and exit with the job's exit code) or detached
    # (print how to follow the job and exit with code 0).
    mode: str = "attached"
    # Slurm account to charge; null uses your default account.
    account: str | None = None
    # Slurm partition; null uses the cluster's default partition.
    partition: str | None = None
    # Slurm quality of service; null uses the cluster's default.
    qos: str | None = None
    # Comment of the job, shown by squeue and sacct; null sets none.
    comment: str | None = None
    # Reservation to run in; null uses none.
    reservation: str | None = None
    # Nodes not to use, in Slurm notation: "node3,rack[1-4]"; null excludes none.
    exclude: str | None = None
    # Do not start before this time, in Slurm notation: "20:00" or "now+2hours"; null starts when possible.
    begin: str | None = None
    # Start after other jobs: the name or folder of a run or sweep, which must succeed, or a Slurm expression:
    # "afterok:123:124", "afterany:other_run". null waits for nothing.
    dependency: str | None = None
    # Events at which Slurm sends mail: BEGIN, END, FAIL, REQUEUE, ALL or others, separated by commas; null sends none.
    mail_type: str | None = None
    # Who gets the mail; null is the user who submits.
    mail_user: str | None = None
    # Number of nodes per job.
    nodes: int = 1
    # Number of ranks per node, usually one per GPU.
    ntasks_per_node: int = 1
    # Number of GPUs per node; 0 requests none.
    gpus_per_node: int = 0
    # Kind of GPU, for estimates of memory and time: a100, h100, h200, b200, gb200, b300 or gb300. null takes the one
    # of this machine for a run on it, and otherwise assumes an H100.
    gpu: str | None = None
    # Number of CPU cores per rank; null uses the partition's default.
    cpus_per_task: int | None = None
    # Memory per node in Slurm notation, for example "64G". null uses the partition's default;
    # "0" requests all memory of the node.
    mem: str | None = None
    # Wall-clock limit in Slurm notation: "HH:MM:SS", "D-HH:MM:SS" or minutes.
    time: str = "04:00:00"
    # Seconds before the time limit at which a run is signaled to save a checkpoint and requeue.
    signal_delay_s: int = 120
    # How many times a run stopped by preemption, the time limit, a crash or a hang may requeue itself.
    max_requeues: int = 20
    # A run that crashes or hangs restarts from its newest checkpoint, until this many consecutive starts have ended
    # without a new one; 1 gives up at the first. For a data preparation: restart a failed task this many times.
    max_crashes: int = 3
    # Maximum number of jobs of a sweep or job array that run at the same time; null leaves it to Slurm.
    array_parallelism: int | None = None
    # Number of Slurm array tasks that share the work of a data preparation.
    tasks: int = 1
    # Seconds between queries of the Slurm queue while attached.
    poll_s: float = 2.0

    # Container runtime: none, pyxis, apptainer, or auto (pyxis if there is an image and Slurm has pyxis, else none).
    # The image is set with run.env.container, or with container for data preparation.
    container_runtime: str = "none"
    # Additional container mounts, each "host:container[:flags]". The folders that nano3 itself
    # reads and writes are always mounted.
    mounts: list[str] = field(default_factory=list)
    # Environment variables to set for every rank, as NAME: value. Do not put secrets here.
    env: dict[str, str] = field(default_factory=dict)
    # Shell lines to run in the job script, on the first node, before the ranks start, such as module load
    # commands. They are copied verbatim; the first line that fails ends the job.
    setup: list[str] = field(default_factory=list)
    # Shell lines to run in the job script, on the first node, after the ranks have ended, also when they failed or the
    # job will be requeued, but not when it is canceled. They do not change how the job ends.
    teardown: list[str] = field(default_factory=list)
    # Python executable that runs the ranks; null uses the current one, or "python" inside a container.
    python: str | None = None
    # Value of srun --mpi; null omits the option.
    mpi: str | None = None
    # Additional sbatch arguments, one list entry per argument: ["--constraint=h100", "--exclusive"].
    sbatch_args: list[str] = field(default_factory=list)
    # Additional srun arguments, one list entry per argument.
    srun_args: list[str] = field(default_factory=list)
