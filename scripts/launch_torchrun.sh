#!/usr/bin/env bash
# One run on one or several machines without a scheduler. Call it on each of them with the same arguments:
#
#   RUN_DIR=/shared/runs/oscarplus_base NNODES=4 MASTER_ADDR=first-machine scripts/launch_torchrun.sh experiment=oscarplus_base
#
# RUN_DIR is on a file system that all machines share. Called again after a kill or a stop, it continues there. When a
# process dies, torchrun starts all of them again (MAX_RESTARTS times), and they continue from the last checkpoint.
# SIGTERM, SIGUSR1 and Ctrl-C reach the processes: they finish their update, save and end.
set -euo pipefail

: "${RUN_DIR:?the folder of the run, on a file system that all machines share: RUN_DIR=FOLDER $0 …}"
nodes=${NNODES:-1}
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l) || true
processes=${NPROC_PER_NODE:-$((gpus > 0 ? gpus : 1))}   # one per GPU

if [ "$nodes" -eq 1 ]; then
    meeting=(--standalone)
else
    : "${MASTER_ADDR:?a machine that the others reach: MASTER_ADDR=HOST $0 …}"
    meeting=(--rdzv-backend c10d --rdzv-endpoint "$MASTER_ADDR:${MASTER_PORT:-29500}" --rdzv-id "${RUN_ID:-vinvl}")
    if [ -n "${NODE_RANK:-}" ]; then   # tells this machine whether it is the one at MASTER_ADDR; else torchrun finds out
        meeting+=(--rdzv-conf "is_host=$((NODE_RANK == 0))")
    fi
fi

# What newer versions of torchrun take as options, older ones do not know; as variables they are passed over.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export PET_SHUTDOWN_TIMEOUT=${SHUTDOWN_TIMEOUT:-300}   # seconds between such a signal and a kill; 30 in older versions

exec torchrun --nnodes "$nodes" --nproc-per-node "$processes" --max-restarts "${MAX_RESTARTS:-3}" "${meeting[@]}" \
    -m vinvl.train trainer=ddp trainer.num_nodes="$nodes" trainer.devices="$processes" \
    hydra.run.dir="$RUN_DIR" ckpt_path=auto "$@"
