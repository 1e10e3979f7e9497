"""Write a cluster profile from what Slurm says about itself: partitions, accounts, MPI plugins, containers.

What could not be found is marked in the file, with what to do about it.
"""

import getpass
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from launch import environment, slurm
from nano3.utils.errors import UserError, did_you_mean, list_some

MARK = "NOT FOUND: "
# A longer time limit than this is the user's choice, not a default.
_LONGEST_S = 86400
_MOST_NAMES = 6  # that a comment lists


@dataclass(frozen=True)
class Partition:
    """The nodes of one kind in a partition, a line of `sinfo -e`."""

    name: str
    default: bool
    up: bool
    # "4:00:00" or "infinite".
    time_limit: str
    # Number of nodes, and what each has; memory in MB.
    nodes: int
    cpus: int
    memory: int
    gpus: int = 0
    gpu_type: str = ""

    def describe(self) -> str:
        """Return the nodes in a few words."""
        gpus = f"{self.gpus} {f'{self.gpu_type} ' * bool(self.gpu_type)}GPUs, " if self.gpus else "no GPUs, "
        return f"{self.nodes} nodes of {gpus}{self.cpus} CPUs, {round(self.memory / 1024)} GB"


@dataclass(frozen=True)
class Setting:
    """One line of the profile."""

    key: str
    # The value as YAML.
    value: str
    comment: str

    @property
    def found(self) -> bool:
        """Whether Slurm named the value."""
        return not self.comment.startswith(MARK)


def parse_sinfo(text: str) -> list[Partition]:
    """Return the partitions in the output of `sinfo -h -e -o "%R|%P|%a|%l|%D|%c|%m|%G"`."""
    found = []
    for line in text.splitlines():
        fields = line.strip().split("|")
        if len(fields) != 8:
            continue
        name, starred, available, limit, nodes, cpus, memory, gres = fields
        count, cores, megabytes = (
            int(match[0]) if (match := re.match(r"\d+", field)) else 0 for field in (nodes, cpus, memory)
        )
        default, up = starred.endswith("*"), available == "up"
        found.append(Partition(name, default, up, limit, count, cores, megabytes, *parse_gres(gres)))
    return found


def parse_gres(text: str) -> tuple[int, str]:
    """Return the number of GPUs and their type in a list such as "gpu:h100:8(S:0-1),mps:400"; (0, "") for none."""
    count, kinds = 0, []
    for word in re.sub(r"\([^)]*\)", "", text).split(","):
        if match := re.fullmatch(r"gpu(?::([A-Za-z][\w.-]*))?(?::(\d+))?", word):
            count += int(match[2] or 1)
            kinds += [match[1]] if match[1] else []
    return count, kinds[0] if len(kinds) == 1 else ""


def choose_partition(partitions: Sequence[Partition], name: str | None) -> Partition:
    """Return the nodes to describe: those with the most GPUs, in the default partition if it has GPUs.

    Args:
        partitions: What sinfo lists.
        name: The partition that the user names.

    Raises:
        UserError: There is no such partition, or none at all.
    """
    names = list(dict.fromkeys(p.name for p in partitions))
    if not partitions:
        raise UserError("sinfo lists no partition that you may use. Ask the site which partition is yours.")
    if name is not None and name not in names:
        raise UserError(f"--partition {name}: Slurm has no such partition.{did_you_mean(name, names)}")
    wanted = [p for p in partitions if p.name == name] if name else [p for p in partitions if p.up] or list(partitions)
    has_gpus = any(p.gpus for p in wanted)
    return max(wanted, key=lambda p: (bool(p.gpus) == has_gpus, p.default, p.nodes * max(p.gpus, 1)))


def parse_mpi(text: str) -> list[str]:
    """Return the plugins in the output of `srun --mpi=list`."""
    return [line.strip() for line in text.splitlines() if re.fullmatch(r"\s+[a-z]\w*\s*", line)]


def query_profile(partition: str | None = None) -> tuple[str, list[Setting]]:
    """Ask Slurm, and return the cluster's name and the lines of a profile.

    Args:
        partition: The partition to use; None chooses one.

    Raises:
        UserError: There is no such partition.
        Failure: Slurm is not installed here, or does not answer.
    """
    chosen_from = parse_sinfo(slurm.answer("sinfo", "-h", "-e", "-o", "%R|%P|%a|%l|%D|%c|%m|%G"))
    nodes = choose_partition(chosen_from, partition)
    config = slurm.answer("scontrol", "show", "config")
    name = match[1] if (match := re.search(r"^ClusterName\s*=\s*(\S+)", config, re.MULTILINE)) else "cluster"
    return name, [
        Setting("kind", "slurm", ""),
        *_account_settings(name, nodes.name),
        _partition_setting(nodes, chosen_from),
        *_node_settings(nodes),
        _time_setting(nodes),
        *_container_settings(nodes.name),
    ]


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", text) else f'"{text}"'


def _list(names: Sequence[str]) -> str:
    return list_some(names, _MOST_NAMES)


def _account_settings(cluster: str, partition: str) -> list[Setting]:
    """Return account and QOS of this user."""
    user = getpass.getuser()
    words = ["show", "assoc", f"user={user}", f"cluster={cluster}", "format=account,partition,qos"]
    code, text = slurm.try_answer("sacctmgr", "-nP", *words)
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
    if code or not rows:
        why = "sacctmgr does not answer" if code else f"sacctmgr knows no account of {user}"
        ask = "null uses your default one, if the site has accounts; else ask it for yours"
        return [
            Setting("account", "null", f"{MARK}{why}; {ask}"),
            Setting("qos", "null", f"{MARK}{why}; null uses the default one"),
        ]
    accounts = list(dict.fromkeys(row[0] for row in rows))
    _, default = slurm.try_answer("sacctmgr", "-nP", "show", "user", user, "format=defaultaccount")
    account = default.strip() if default.strip() in accounts else accounts[0]
    others = [name for name in accounts if name != account]
    comment = f"sacctmgr: your {'default' if default.strip() == account else 'first'} account"
    own = [row for row in rows if row[0] == account and row[1] in ("", partition)]
    names = list(dict.fromkeys(name for row in own for name in row[2].split(",") if name))
    comment += f"; you also have {_list(others)}" if others else ""
    qos = f"the account's default; sacctmgr allows {_list(names)}" if names else "sacctmgr has none"
    return [Setting("account", _quoted(account), comment), Setting("qos", "null", qos)]


def _partition_setting(nodes: Partition, all_nodes: Sequence[Partition]) -> Setting:
    others = list(dict.fromkeys(p.name for p in all_nodes if p.name != nodes.name))
    comment = f"sinfo: {nodes.describe()}" + ("" if nodes.up else ", not up now")
    if sum(p.name == nodes.name for p in all_nodes) > 1:
        comment += "; it also has other nodes"
    return Setting("partition", _quoted(nodes.name), comment + (f"; others: {_list(others)}" if others else ""))


def _node_settings(nodes: Partition) -> list[Setting]:
    ranks = nodes.gpus or 1
    gpus = "sinfo" if nodes.gpus else f"{MARK}sinfo lists no GPUs there; choose another one with --partition"
    cpus = f"{nodes.cpus} CPUs of a node / {ranks} GPUs" if nodes.gpus else "all CPUs of a node"
    mem = f"all memory of a node{', as a run uses all its GPUs' * bool(nodes.gpus)}"
    return [
        Setting("nodes", "1", "how many nodes a run uses"),
        Setting("gpus_per_node", str(nodes.gpus), gpus),
        Setting("ntasks_per_node", "${cluster.gpus_per_node}" if nodes.gpus else "1", "one rank per GPU"),
        Setting("cpus_per_task", str(max(nodes.cpus // ranks, 1)), cpus),
        Setting("mem", '"0"', mem),
    ]


def _time_setting(nodes: Partition) -> Setting:
    try:
        limit = slurm.parse_time_limit(nodes.time_limit)
    except ValueError:
        return Setting("time", '"04:00:00"', f"{MARK}sinfo's limit {nodes.time_limit!r} is not a time")
    if limit is not None and limit <= _LONGEST_S:
        hours, rest = divmod(limit, 3600)
        text = f"{hours:02}:{rest // 60:02}:{rest % 60:02}"
        return Setting("time", f'"{text}"', "the limit of the partition; a run requeues itself and continues")
    why = "none" if limit is None else nodes.time_limit
    return Setting("time", '"1-00:00:00"', f"the partition's limit is {why}; a run requeues itself and continues")


def _container_settings(partition: str) -> list[Setting]:
    """Return the container runtime and the MPI plugin."""
    plugins = parse_mpi(slurm.try_answer("srun", "--mpi=list")[1])
    has = f"srun has {_list(plugins)}" if plugins else "srun lists no plugin"
    if environment.has_pyxis():
        image = "the experiment names the image: run.env.container"
        runtime = Setting("container_runtime", "auto", f"srun has pyxis; {image}")
    elif shutil.which("apptainer"):
        runtime = Setting("container_runtime", "apptainer", "no pyxis; apptainer is installed here")
    else:
        why = "neither pyxis nor apptainer; the ranks use this Python, or cluster.python"
        return [
            Setting("container_runtime", "none", f"{MARK}{why}"),
            Setting("mpi", "null", f"only needed in a container; {has}"),
        ]
    preferred = [name for name in ("pmix", *plugins, "pmi2") if name in plugins and name.startswith("pm")]
    unusable: list[str] = []
    for name in dict.fromkeys(preferred):
        if _loads(name, partition):
            skipped = f"; {_list(unusable)} cannot be loaded here" if unusable else ""
            return [runtime, Setting("mpi", name, has + skipped)]
        unusable.append(name)
    why = f"{_list(unusable)} cannot be loaded here" if unusable else "none of them is pmix or pmi2"
    return [runtime, Setting("mpi", "null", f"{MARK}{has}, but {why}")]


def _loads(plugin: str, partition: str) -> bool:
    """Return whether srun can load an MPI plugin: it lists also those whose libraries are missing. Runs no job."""
    words = [f"--mpi={plugin}", "--test-only", "-n1", "-t1", "-p", partition, "true"]
    return "Invalid MPI type" not in slurm.try_answer("srun", *words)[1]


def profile_text(name: str, settings: Sequence[Setting]) -> str:
    """Return the profile as YAML with comments.

    Args:
        name: Name of the cluster.
        settings: Its lines.
    """
    words = [f"{setting.key}: {setting.value}" for setting in settings]
    width = max(map(len, words)) + 2
    lines = [
        f"{text:<{width}}# {setting.comment}" if setting.comment else text
        for text, setting in zip(words, settings, strict=True)
    ]
    head = f"# Cluster {name}, written by `nano3 cluster init` on {datetime.now():%Y-%m-%d} from what Slurm says.\n"
    marked = f"# Check the lines with {MARK.rstrip(': ')}.\n" if not all(setting.found for setting in settings) else ""
    return head + marked + "# nano3/config/cluster.py documents every key.\n" + "\n".join(lines) + "\n"
