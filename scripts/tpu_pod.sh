#!/usr/bin/env bash
# A run on all hosts of a TPU pod slice. Not run here: written by Google's documentation of `gcloud compute tpus`.
#
#   ZONE=us-west4-a TYPE=v5litepod-256 scripts/tpu_pod.sh create my-pod
#   ZONE=us-west4-a scripts/tpu_pod.sh setup my-pod https://example.org/mtl_jax.git
#   ZONE=us-west4-a scripts/tpu_pod.sh run my-pod --config=configs/glue.py --workdir=/shared/runs/glue
#   ZONE=us-west4-a scripts/tpu_pod.sh stop my-pod      # SIGTERM: all hosts save at the same step and end
#   ZONE=us-west4-a scripts/tpu_pod.sh logs my-pod
#   ZONE=us-west4-a scripts/tpu_pod.sh delete my-pod
#
# --workdir, and the folders of data, are ones that every host sees: Filestore, or a bucket mounted by gcsfuse.
set -euo pipefail
: "${ZONE:?the zone of the pod, e.g. ZONE=us-west4-a}"
what=${1:?create, setup, run, stop, logs or delete}
name=${2:?the name of the pod}
shift 2

on_all() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$ZONE" --worker=all --command="$1"
}

case "$what" in
  create)
    gcloud compute tpus tpu-vm create "$name" --zone="$ZONE" \
      --accelerator-type="${TYPE:-v5litepod-16}" --version="${VERSION:-v2-alpha-tpuv5-lite}" "$@"
    ;;
  setup)
    on_all "git clone ${1:?address of the repository} mtl_jax && cd mtl_jax && python3 -m venv .venv && .venv/bin/pip install -e '.[tpu]'"
    ;;
  run)  # hosts find each other by what the pod says of itself; the first one writes run.log for people
    arguments=$(printf ' %q' "$@")
    on_all "cd mtl_jax && nohup .venv/bin/python launch.py$arguments > run.log 2>&1 < /dev/null & disown"
    ;;
  stop)
    on_all "pkill -TERM -o -f 'python launch.py'"
    ;;
  logs)
    on_all "hostname; tail -n 5 mtl_jax/run.log"
    ;;
  delete)
    gcloud compute tpus tpu-vm delete "$name" --zone="$ZONE"
    ;;
  *)
    echo "$what is none of create, setup, run, stop, logs, delete" >&2
    exit 2
    ;;
esac
