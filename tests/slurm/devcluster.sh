#!/usr/bin/env bash
# A real Slurm of several nodes on one Debian machine, for tests, CI and contributors. Needs root, but no systemd and no cgroups.
#
#   devcluster.sh up DIR [options]    install missing packages, start missing daemons, run a test job (idempotent)
#   devcluster.sh down DIR [--purge]  stop only the daemons with their state in DIR; --purge removes DIR too
#   devcluster.sh status DIR          one line per daemon; exit code 0 if all are up
#   . DIR/env.sh                      set SLURM_CONF, to use the cluster in a shell
# DIR must be a short path below world-accessible folders: munge rejects others.
#
# options of `up`, remembered in DIR/options:
#   --nodes N (2)   --cpus N (16)   --mem MB (64000)   --gpus N (8)     resources of each node
#   --no-accounting                                                     no MariaDB and no slurmdbd: sacct has no answers
#   --pyxis                                                             accept pyxis' srun options (fake_pyxis.c; needs gcc)
#
# partitions: batch (default; preempted jobs are requeued), scavenge (preempted jobs are canceled), urgent (preempts both, 10 minutes)
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd -P)
usage() { sed -n '2,15p' "$0" | cut -c3-; exit 2; }
[ $# -ge 2 ] || usage
action=$1
mkdir -p "$2"
state=$(cd "$2" && pwd -P)
shift 2

nodes=2 cpus=16 mem=64000 gpus=8 accounting=yes pyxis=no port='' purge=no
# shellcheck disable=SC1091
[ ! -f "$state/options" ] || . "$state/options"
while [ $# -gt 0 ]; do
  case $1 in
    --nodes) nodes=$2; shift ;;
    --cpus) cpus=$2; shift ;;
    --mem) mem=$2; shift ;;
    --gpus) gpus=$2; shift ;;
    --no-accounting) accounting=no ;;
    --pyxis) pyxis=yes ;;
    --purge) purge=yes ;;
    *) echo "unknown option $1" >&2; usage ;;
  esac
  shift
done

export SLURM_CONF=$state/slurm.conf
run=$state/run log=$state/log hosts_tag="# devcluster $state"

say() { echo "devcluster: $*" >&2; }
fail() { say "$*"; tail -n 5 "$log"/*.log >&2 2>/dev/null || true; exit 1; }
node_names() { seq -f 'node%g' "$nodes"; }
daemons() {
  echo munged
  [ $accounting = no ] || printf '%s\n' mariadbd slurmdbd
  echo slurmctld
  node_names | sed 's/^/slurmd-/'
}

# A pid is ours only when its command line or environment names our state folder: pid files can outlive their processes.
is_ours() {
  [ -n "$1" ] && kill -0 "$1" 2>/dev/null || return 1
  cat "/proc/$1/cmdline" 2>/dev/null | tr '\0' '\n' | grep -qF -- "$state/" && return 0
  cat "/proc/$1/environ" 2>/dev/null | tr '\0' '\n' | grep -qxF "SLURM_CONF=$SLURM_CONF"
}
pid_of() { cat "$run/$1.pid" 2>/dev/null || true; }
is_up() { is_ours "$(pid_of "$1")"; }
listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
until_true() { # seconds, error message, command...
  local deadline=$((SECONDS + $1)) complaint=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || fail "$complaint"
    sleep 0.1
  done
}
end_process() { # pid
  is_ours "$1" || return 0
  kill "$1" 2>/dev/null || true
  local tries
  for tries in $(seq 100); do is_ours "$1" || return 0; sleep 0.1; done
  say "pid $1 ignores SIGTERM after $tries tries: killing it"
  kill -9 "$1" 2>/dev/null || true
}

status() {
  local daemon bad=0
  for daemon in $(daemons); do
    if is_up "$daemon"; then echo "$daemon up"; else echo "$daemon DOWN"; bad=1; fi
  done
  return $bad
}
nodes_ready() { [ "$(timeout 5 sinfo -hNp batch -o '%T' 2>/dev/null | grep -cE '^(idle|mixed|allocated|completing)$')" = "$nodes" ]; }

down() {
  local pid daemon
  if is_up slurmctld; then
    timeout 10 squeue -h -o %A 2>/dev/null | sort -u | xargs -r timeout 10 scancel 2>/dev/null || true
    for _ in $(seq 60); do [ -n "$(timeout 5 squeue -h -o %A 2>/dev/null || true)" ] || break; sleep 0.2; done
  fi
  # slurmstepd outlives slurmd by design, and a slurmd that never reached its controller has no pid file.
  for pid in $(pgrep -x 'slurmd|slurmstepd' || true); do end_process "$pid"; done
  for daemon in slurmctld slurmdbd mariadbd munged; do end_process "$(pid_of $daemon)"; done
  rm -f "$run"/*.pid
  if grep -qF "$hosts_tag" /etc/hosts; then # rewrite in place: /etc/hosts is a mount in containers
    local kept
    kept=$(grep -vF "$hosts_tag" /etc/hosts || true)
    printf '%s\n' "$kept" >/etc/hosts
  fi
  [ $purge = no ] || rm -rf "$state"
  say "down: $state"
}

install_packages() {
  local wanted=() entry
  local table=(slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client munged:munge)
  [ $accounting = no ] || table+=(slurmdbd:slurmdbd mariadbd:mariadb-server-core mariadb-install-db:mariadb-server-core mariadb:mariadb-client-core)
  [ $pyxis = no ] || table+=(gcc:gcc)
  for entry in "${table[@]}"; do command -v "${entry%%:*}" >/dev/null || wanted+=("${entry##*:}"); done
  [ $pyxis = no ] || [ -f /usr/include/slurm/spank.h ] || wanted+=(libslurm-dev libc6-dev)
  [ ${#wanted[@]} -gt 0 ] || return 0
  say "installing ${wanted[*]}"
  local policy=/usr/sbin/policy-rc.d made_policy=no # apt must not start the daemons
  [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy; chmod +x $policy; made_policy=yes; }
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update && apt-get install -y --no-install-recommends "${wanted[@]}"; } >"$log/apt.log" 2>&1 || fail "apt-get install ${wanted[*]}"
  [ $made_policy = no ] || rm -f $policy
}

choose_ports() { # a block of 40 below the ephemeral range; two clusters side by side get different ones
  [ -z "$port" ] || return 0
  local start try
  start=$(($(printf %s "$state" | cksum | cut -d' ' -f1) % 300))
  for try in $(seq 0 299); do
    port=$((17000 + 40 * ((start + try) % 300)))
    listens $port || listens $((port + 1)) || listens $((port + 11)) || return 0
  done
  fail "no free ports"
}

write_slurm_conf() {
  local host name number=0
  host=$(hostname -s)
  cat >"$SLURM_CONF" <<CONF
ClusterName=devcluster
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# a requeued job waits for its old credential to expire: 120 s by default
AuthInfo=socket=$state/munge/munge.socket,cred_expire=5
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/spool/%n
SlurmctldPidFile=$run/slurmctld.pid
SlurmdPidFile=$run/slurmd-%n.pid
SlurmctldLogFile=$log/slurmctld.log
SlurmdLogFile=$log/slurmd-%n.log
PlugStackConfig=$state/plugstack.conf
# what works without systemd and without writable cgroups
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true
PropagateResourceLimits=NONE
# believe this file about CPUs and memory, not the machine
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
GresTypes=gpu
# schedule at once and kill soon; production sites use 30 to 60 seconds
SchedulerParameters=bf_interval=3,sched_interval=5,batch_sched_delay=0
KillWait=5
InactiveLimit=0
ReturnToService=2
MinJobAge=600
MaxArraySize=2001
# requeue and preemption
JobRequeue=1
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
CONF
  if [ $accounting = yes ]; then
    cat >>"$SLURM_CONF" <<CONF
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 1))
AccountingStoragePass=$state/munge/munge.socket
AccountingStorageTRES=gres/gpu
CONF
  fi
  local gres=''
  [ "$gpus" = 0 ] || gres=" Gres=gpu:$gpus"
  for name in $(node_names); do
    number=$((number + 1))
    local same_host=''
    [ "$own_hostnames" = yes ] || same_host=" NodeHostname=$host"
    echo "NodeName=$name NodeAddr=127.0.0.1$same_host Port=$((port + 10 + number)) CPUs=$cpus SocketsPerBoard=1 CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=$mem$gres State=UNKNOWN"
  done >>"$SLURM_CONF"
  cat >>"$SLURM_CONF" <<CONF
PartitionName=batch Nodes=ALL Default=YES DefaultTime=60 MaxTime=7-00:00:00 PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 State=UP
PartitionName=scavenge Nodes=ALL DefaultTime=60 MaxTime=7-00:00:00 PriorityTier=1 PreemptMode=CANCEL GraceTime=20 State=UP
PartitionName=urgent Nodes=ALL DefaultTime=5 MaxTime=10 PriorityTier=10 PreemptMode=OFF State=UP
CONF
}

write_gres_conf() { # slurmd insists on character devices; nobody opens them
  : >"$state/gres.conf"
  [ "$gpus" != 0 ] || return 0
  local index device devices=()
  for index in $(seq 0 $((gpus - 1))); do
    device=$state/dev/gpu$index
    [ -c "$device" ] || mknod -m 666 "$device" c 195 "$index" 2>/dev/null || break
    devices+=("$device")
  done
  if [ ${#devices[@]} -lt "$gpus" ]; then
    say "may not make device nodes here: existing ones stand in for GPUs"
    mapfile -t devices < <(find /dev -maxdepth 2 -type c | sort | head -n "$gpus")
  fi
  { echo AutoDetect=off; printf 'Name=gpu File=%s\n' "${devices[@]}"; } >"$state/gres.conf"
}

write_files() {
  chmod 755 "$state" # slurmd runs the jobs of any user
  declare -p nodes cpus mem gpus accounting pyxis port | sed 's/^declare -- //' >"$state/options"
  own_hostnames=yes
  unshare --uts true 2>/dev/null || { own_hostnames=no; say "no right to name hosts: all nodes share one hostname"; }
  local name
  for name in $(node_names); do # MASTER_ADDR=node1 must resolve
    grep -qxF "127.0.0.1 $name $hosts_tag" /etc/hosts || echo "127.0.0.1 $name $hosts_tag" >>/etc/hosts
  done
  [ -f "$state/munge/munge.key" ] || (umask 077; head -c 1024 /dev/urandom >"$state/munge/munge.key")
  write_slurm_conf
  write_gres_conf
  # Nothing above uses cgroups, but slurmd loads a plugin: that of cgroup v2 wants systemd, that of v1 nothing.
  echo CgroupPlugin=cgroup/v1 >"$state/cgroup.conf"
  : >"$state/plugstack.conf"
  if [ $pyxis = yes ]; then
    gcc -shared -fPIC -O1 -o "$state/fake_pyxis.so" "$here/fake_pyxis.c" || fail "cannot build fake_pyxis.c"
    echo "required $state/fake_pyxis.so" >"$state/plugstack.conf"
  fi
  echo "export SLURM_CONF=$SLURM_CONF" >"$state/env.sh"
}

start_accounting() {
  local client=(mariadb --no-defaults --socket="$run/mysql.sock" --user=root)
  if [ ! -f "$state/mysql/.installed" ]; then
    rm -rf "$state/mysql"
    mariadb-install-db --no-defaults --user=root --datadir="$state/mysql" --skip-test-db \
      --auth-root-authentication-method=normal >"$log/mariadb-install.log" 2>&1 || fail mariadb-install-db
    touch "$state/mysql/.installed"
  fi
  if ! is_up mariadbd; then # a plain command in the background, or a copy of this shell would wait for it
    setsid mariadbd --no-defaults --user=root --datadir="$state/mysql" --socket="$run/mysql.sock" \
      --pid-file="$run/mariadbd.pid" --port=$((port + 2)) --bind-address=127.0.0.1 --log-error="$log/mariadbd.log" \
      --innodb-buffer-pool-size=64M --innodb-flush-log-at-trx-commit=0 --skip-name-resolve --skip-log-bin \
      </dev/null >/dev/null 2>&1 &
  fi
  until_true 30 "mariadbd does not answer" "${client[@]}" -e 'select 1'
  "${client[@]}" -e "create database if not exists slurm_acct_db;
    create user if not exists 'slurm'@'127.0.0.1' identified by 'slurm'; grant all on slurm_acct_db.* to 'slurm'@'127.0.0.1';"
  (umask 077; cat >"$state/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$state/munge/munge.socket
DbdHost=$(hostname -s)
DbdAddr=127.0.0.1
DbdPort=$((port + 1))
SlurmUser=root
PidFile=$run/slurmdbd.pid
LogFile=$log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((port + 2))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
CONF
  )
  is_up slurmdbd || slurmdbd 2>>"$log/slurmdbd.log" || fail slurmdbd
  until_true 30 "slurmdbd does not listen" listens $((port + 1))
}

start_node() { # its own hostname where that is allowed
  is_up "slurmd-$1" && return 0
  mkdir -p "$state/spool/$1"
  if [ "$own_hostnames" = yes ]; then
    # shellcheck disable=SC2016
    unshare --uts sh -c 'hostname "$0" && exec slurmd -N "$0" -f "$SLURM_CONF"' "$1"
  else
    slurmd -N "$1" -f "$SLURM_CONF"
  fi 2>>"$log/slurmd-$1.log" || fail "slurmd $1"
}

up() {
  [ "$(id -u)" = 0 ] || { say "must be root"; exit 2; }
  [ ${#state} -le 80 ] || { say "DIR is too long for a unix socket: $state"; exit 2; }
  if [ -f "$SLURM_CONF" ] && status >/dev/null && nodes_ready; then say "already up: . $state/env.sh"; return; fi
  mkdir -p "$run" "$log" "$state"/{ctld,spool,munge,dev}
  install_packages
  choose_ports
  write_files
  if ! is_up munged; then
    rm -f "$state/munge/munge.socket"*
    munged --key-file="$state/munge/munge.key" --socket="$state/munge/munge.socket" --pid-file="$run/munged.pid" \
      --log-file="$log/munged.log" --seed-file="$state/munge/seed" 2>>"$log/munged.log" || fail munged
  fi
  [ $accounting = no ] || start_accounting
  is_up slurmctld || slurmctld -f "$SLURM_CONF" 2>>"$log/slurmctld.log" || fail slurmctld
  until_true 20 "slurmctld does not answer" timeout 5 scontrol ping
  for name in $(node_names); do start_node "$name"; done
  until_true 40 "not every node became idle" nodes_ready
  until_true 30 "no job could run on every node" timeout 10 srun -Q -N "$nodes" -t 1 --mem 50 -J devcluster true
  say "up with $nodes nodes: . $state/env.sh"
}

case $action in
  up) up ;;
  down) down ;;
  status) status ;;
  *) usage ;;
esac
