"""Group `cluster`: where a job runs. A profile describes a machine, never an experiment: no image, no batch size."""

from dataclasses import dataclass, field


@dataclass
class ClusterConfig:
    """`cluster=local` runs here; `cluster=slurm` submits.

    Add your own profile as `conf/cluster/<name>.yaml`, or as `$NANO3_CONF/cluster/<name>.yaml`.
    """

    # local or slurm.
    kind: str = "local"
    # Ranks to start on this machine (cluster=local); more than one starts torchrun.
    nproc_per_node: int = 1

    # attached: stream the log and exit with the job's code. detached: submit, print how to follow, exit 0.
    mode: str = "attached"
    # Slurm account to charge; null takes the user's default.
    account: str | None = None
    # Slurm partition; null takes the cluster's default.
    partition: str | None = None
    # Slurm quality of service.
    qos: str | None = None
    # Number of nodes.
    nodes: int = 1
    # Ranks on each node; one per GPU.
    ntasks_per_node: int = 1
    # GPUs on each node; 0 asks for none.
    gpus_per_node: int = 0
    # CPUs for each rank; null takes the partition's default.
    cpus_per_task: int | None = None
    # Memory per node as Slurm writes it ("64G"); null takes the partition's default, "0" all of it.
    mem: str | None = None
    # Wall-clock limit as Slurm writes it: "HH:MM:SS", "D-HH:MM:SS" or minutes.
    time: str = "04:00:00"
    # Seconds before the time limit at which a run is told to save and requeue.
    signal_delay_s: int = 120
    # How often a run that was told to stop (preemption, time limit) may requeue itself before it is given up.
    max_requeues: int = 20
    # Give up when this many starts in a row end without a new checkpoint.
    max_crashes: int = 3
    # At most this many jobs of a sweep or array at a time; null leaves it to Slurm.
    array_parallelism: int | None = None
    # Data preparation: number of array tasks the plan is spread over.
    tasks: int = 1
    # Seconds between looks at the queue while attached.
    poll_s: float = 2.0

    # Container runtime: none, pyxis or apptainer. The image comes from run.env.container (data preparation: container).
    container_runtime: str = "none"
    # Further mounts, "host:container[:flags]"; what nano3 itself reads and writes is always mounted.
    mounts: list[str] = field(default_factory=list)
    # Environment variables for every rank.
    env: dict[str, str] = field(default_factory=dict)
    # Shell lines run once per node before the ranks start (module load ...). Written into the job script as they are.
    setup: list[str] = field(default_factory=list)
    # Python that runs the ranks; null takes this one, or "python" inside a container.
    python: str | None = None
    # srun --mpi=...; null leaves it out.
    mpi: str | None = None
    # Further sbatch arguments, each one word: ["--constraint=h100", "--exclusive"].
    sbatch_args: list[str] = field(default_factory=list)
    # Further srun arguments, each one word.
    srun_args: list[str] = field(default_factory=list)
