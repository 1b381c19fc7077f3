#!/usr/bin/env bash
# A Slurm job of one process a node (or a GPU); submits itself.
#
#   experiments/launch/slurm.sh --config=paper:task=sst2 --workdir=/shared/runs/sst2
#   NODES=4 TASKS_PER_NODE=8 SBATCH_OPTIONS="--gpus-per-task=1 --partition=a100" \
#       experiments/launch/slurm.sh --config=... --workdir=...
#
# 120 s before its time is up, or when it is preempted, each process gets SIGTERM, saves
# and exits with 75; the job is then put back into the queue and goes on where it was.
#SBATCH --job-name=hypelora
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=hypelora-%j.log
set -euo pipefail

if [ -z "${SLURM_JOB_ID:-}" ]; then # not in a job: submit this file
	case " $* " in
	*" --config"*" --workdir"* | *" --workdir"*" --config"*) ;;
	*)
		echo "slurm.sh: error: --config=... or --workdir=... is missing; give both, see the top of $0" >&2
		exit 2
		;;
	esac
	root=$(cd "$(dirname "$0")/../.." && pwd)
	read -ra options <<<"${SBATCH_OPTIONS:-}"
	exec sbatch "--nodes=${NODES:-1}" "--ntasks-per-node=${TASKS_PER_NODE:-1}" \
		"--chdir=$root" ${options[@]+"${options[@]}"} \
		"$root/experiments/launch/slurm.sh" "$@"
fi

status=0
srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" experiments/train.py "$@" || status=$?
if [ "$status" = 75 ]; then
	scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
