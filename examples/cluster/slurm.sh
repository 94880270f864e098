#!/bin/bash
# Two workers; the job is requeued until the training is done. Not run on a cluster.
#SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=1 --time=12:00:00
#SBATCH --requeue --open-mode=append
#SBATCH --signal=TERM@120        # two minutes before the limit, and at a preemption

export HOSTS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed 's/.*/"&:5000"/' |
    paste -sd,)
srun --kill-on-bad-exit=1 bash -c '
    export TF_CONFIG="{\"cluster\": {\"worker\": [$HOSTS]}, \"task\":
        {\"type\": \"worker\", \"index\": $SLURM_PROCID}}"
    exec keras-hsakd distill --teacher runs/teacher --model wrn_16_2 \
        --output runs/student --strategy multiworker --resume'
status=$?
[ $status -eq 75 ] && scontrol requeue "$SLURM_JOB_ID"
exit $status
