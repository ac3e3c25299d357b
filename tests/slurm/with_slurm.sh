#!/usr/bin/env bash
# with_slurm.sh COMMAND...: run a command beside a Slurm of one node, which goes when the command has ended.
# For tests only. It needs root, Debian's packages slurmctld, slurmd, slurm-client and munge, and a machine without a
# Slurm of its own. No systemd, no accounting, no cgroups; partitions `cpu` and `gpu`, and two GPUs that do nothing.
set -euo pipefail

GPUS=2
CPUS=8 # more than a small machine has, so that jobs wait for a GPU and not for a core
PORT=26817
LINK=/run/slurm/conf/slurm.conf # where Slurm's programs look; in a job the executor plugin drops SLURM_CONF

fail() {
  echo "with_slurm.sh: $*" >&2
  exit 1
}
[ $# -gt 0 ] || fail "no command given"
[ "$(id -u)" = 0 ] || fail "not root: slurmd needs it"
for program in munged slurmctld slurmd sbatch; do
  command -v $program > /dev/null || fail "$program is not installed (make test-slurm installs it on Debian)"
done
unset SLURM_CONF
[ ! -e /etc/slurm/slurm.conf ] || fail "/etc/slurm/slurm.conf: this machine has a Slurm of its own"
[ ! -e $LINK ] || ! timeout 5 scontrol ping > /dev/null 2>&1 || fail "$LINK: a Slurm runs here already"

dir=$(mktemp -d /tmp/with-slurm.XXXXXX)
daemons=()
mkdir -p "$dir"/{state,spool} "${LINK%/*}"
chmod 755 "$dir"
host=$(hostname -s)

stop() {
  trap - EXIT INT TERM
  if timeout 5 scontrol ping > /dev/null 2>&1; then
    timeout 10 scancel --user=root || true
    wait_for no_job_is_left || true
  fi
  for pid in "${daemons[@]}"; do kill "$pid" 2> /dev/null || true; done
  wait "${daemons[@]}" 2> /dev/null || true
  rm -rf -- "$dir" $LINK
}
trap stop EXIT
trap 'exit 130' INT TERM

wait_for() { # 60 seconds at most
  for _ in $(seq 300); do
    if "$@" > /dev/null 2>&1; then return; fi
    sleep 0.2
  done
  return 1
}
no_job_is_left() { [ -z "$(squeue --noheader --states=PD,R,CG)" ]; }
munge_answers() { munge --no-input --socket "$dir/munge" | unmunge --socket "$dir/munge"; }
is_up_or_dead() { "$1" || ! kill -0 "${daemons[-1]}"; }
controller_answers() { scontrol ping; }
node_is_idle() { [ "$(sinfo --noheader --format=%T | sort --unique)" = idle ]; }

start() { # start NAME COMMAND...: a daemon in the foreground, as a child of this script
  local name=$1
  shift
  "$@" > "$dir/$name.log" 2>&1 < /dev/null &
  daemons+=($!)
}
require() { # require NAME CONDITION: of the daemon started last; or show its log and leave
  wait_for is_up_or_dead "$2" && "$2" > /dev/null 2>&1 || { tail -n 20 "$dir/$1.log" >&2; fail "$1 did not come up"; }
}

# A GPU is a file whose name ends in its number; Slurm only counts it and sets CUDA_VISIBLE_DEVICES.
for i in $(seq 0 $((GPUS - 1))); do ln -s /dev/null "$dir/gpu$i"; done
echo "NodeName=$host Name=gpu File=$dir/gpu[0-$((GPUS - 1))]" > "$dir/gres.conf"
memory=$(awk '/^MemTotal:/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
cat > "$dir/slurm.conf" << END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$PORT
SlurmdPort=$((PORT + 1))
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthInfo=socket=$dir/munge,cred_expire=5
SlurmUser=root
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmdParameters=config_overrides
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# a job over its memory is killed, looked at each second
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SchedulerParameters=bf_interval=2,sched_min_interval=0,batch_sched_delay=0
# what the node can never run is refused, rather than pending for ever
EnforcePartLimits=ALL
KillWait=2
ReturnToService=2
# how long an ended job is still shown, in seconds
MinJobAge=3600
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$CPUS RealMemory=$memory Gres=gpu:$GPUS
PartitionName=cpu Nodes=$host Default=YES
PartitionName=gpu Nodes=$host
END
ln -sfn "$dir/slurm.conf" $LINK
(umask 077 && head -c 128 /dev/urandom > "$dir/munge.key")

start munged munged --foreground --force --key-file="$dir/munge.key" --socket="$dir/munge" \
  --pid-file="$dir/munged.pid" --seed-file="$dir/munge.seed" --log-file="$dir/munged.own.log"
require munged munge_answers
start slurmctld slurmctld -D -i -f "$dir/slurm.conf"
require slurmctld controller_answers
start slurmd slurmd -D -N "$host" -f "$dir/slurm.conf"
require slurmd node_is_idle

"$@"
