#!/usr/bin/env bash
# A TPU VM slice, from making it to deleting it; every command runs on all its hosts.
#
#   export PROJECT=my-project ZONE=us-west4-a TPU=hypelora SLICE=v5litepod-16
#   experiments/launch/tpu_vm.sh create
#   experiments/launch/tpu_vm.sh install
#   experiments/launch/tpu_vm.sh prepare --config=paper:size=large,task=sst2
#   experiments/launch/tpu_vm.sh train --config=paper:size=large,task=sst2 --workdir=gs://...
#   experiments/launch/tpu_vm.sh delete
#
# The flags of `train` are those of experiments/train.py; a workdir of several hosts must
# be one they share, gs://... or a mounted file system. RUNTIME (software of the VMs),
# PYTHON (on the VMs) and SPOT=1 (cheaper, may be taken away) can be set as well.
set -euo pipefail

die() {
	echo "tpu_vm.sh: error: $*" >&2
	exit 2
}

usage="expected create, install, prepare, train, stop or delete"
[ $# -gt 0 ] || die "there is no command; $usage"
command=$1
shift
for name in PROJECT ZONE TPU; do
	[ -n "${!name:-}" ] || die "$name is not set; export $name=... first, see the top of $0"
done
python=${PYTHON:-python3.11}
root=$(cd "$(dirname "$0")/../.." && pwd)
at=("$TPU" "--zone=$ZONE" "--project=$PROJECT")
tpu=(gcloud compute tpus tpu-vm)

on_all() { # a shell command, on every host
	"${tpu[@]}" ssh "${at[@]}" --worker=all "--command=$1"
}

quoted() { # the arguments as one string that a shell reads back unharmed
	printf '%q ' "$@"
}

needs() { # needs FLAG ARGS...: one of the arguments is FLAG=... or FLAG
	local flag=$1 argument
	shift
	for argument in "$@"; do
		case $argument in "$flag" | "$flag"=*) return ;; esac
	done
	die "$command needs $flag=...; add it"
}

case $command in
create)
	[ -n "${SLICE:-}" ] || die "SLICE is not set; export it first, as in SLICE=v5litepod-16"
	"${tpu[@]}" create "${at[@]}" "--accelerator-type=$SLICE" \
		"--version=${RUNTIME:-v2-alpha-tpuv5-lite}" ${SPOT:+--spot}
	;;
install)
	archive=$(mktemp -d)/hypelora_jax.tar.gz
	git -C "$root" archive --format=tar.gz "--output=$archive" HEAD
	"${tpu[@]}" scp "$archive" "$TPU:hypelora_jax.tar.gz" \
		"--zone=$ZONE" "--project=$PROJECT" --worker=all
	rm -r "$(dirname "$archive")"
	on_all "set -e; rm -rf hypelora_jax; mkdir hypelora_jax; cd hypelora_jax
		tar -xzf ../hypelora_jax.tar.gz; $(quoted "$python") -m venv .venv
		.venv/bin/pip install --quiet -c constraints.txt -e '.[tpu]'
		.venv/bin/hypelora --version"
	;;
prepare)
	needs --config "$@"
	on_all "cd hypelora_jax && JAX_PLATFORMS=cpu .venv/bin/hypelora prepare $(quoted "$@")"
	;;
train)
	needs --config "$@"
	needs --workdir "$@"
	on_all "cd hypelora_jax && exec .venv/bin/python experiments/train.py $(quoted "$@")"
	;;
stop) # training saves, and `train` with the same flags goes on
	on_all "pkill -TERM -f [e]xperiments/train.py"
	;;
delete)
	"${tpu[@]}" delete "${at[@]}" --quiet
	;;
*) die "no command $command; $usage" ;;
esac
