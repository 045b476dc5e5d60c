#!/usr/bin/env bash
# One run on SLURM, which is requeued until it is done:
#
#   sbatch --nodes=4 scripts/launch_slurm.sh experiment=oscarplus_base
#
# Options of sbatch on the command line count for more than those below; partition and account are your cluster's.
# The run is in runs/NAME/slurm-JOBID. SLURM keeps the number of a job that it requeues, so the job continues there.
#SBATCH --job-name=vinvl
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
# --signal: five minutes before the time is up every process is told, which finishes its update, saves and ends.
# --ntasks-per-node: one process per GPU. --requeue: also after a failed node or a pre-emption.
set -uo pipefail

# A rank that fails ends the others a minute later; one that stops in good order leaves them time to do so too.
srun --kill-on-bad-exit=0 --wait=60 "${PYTHON:-python}" -m vinvl.train trainer=ddp \
    trainer.num_nodes="$SLURM_NNODES" trainer.devices="$SLURM_NTASKS_PER_NODE" ckpt_path=auto "$@"
code=$?

case $code in
    75 | 138)   # saved and stopped as asked to; or asked before training had begun (SIGUSR1)
        scontrol requeue "$SLURM_JOB_ID"
        ;;
    *)
        exit "$code"
        ;;
esac
