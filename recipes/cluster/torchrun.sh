#!/bin/bash
# Data-parallel training that survives failures: when a process dies, torchrun stops the others and starts all of them
# again, and the run continues from its newest checkpoint. Run it on every machine.
#
#   GPUS=8 bash recipes/cluster/torchrun.sh swav/imagenet1k_resnet50 data.path=/shared/images train.output_dir=/shared/run
#   NODES=2:4 RDZV=node1:29400 bash recipes/cluster/torchrun.sh ...     two to four machines, which may come and go
#
# The output folder must be on a file system that all machines share. train.batch_size must divide by the number of
# processes, for every number of machines that is allowed. RESTARTS counts failures of any kind: a mistake in the recipe
# is tried again, too.
set -euo pipefail
# By default all attempts share one store, in which a second attempt finds the addresses of the first and waits for them
# forever (https://github.com/pytorch/pytorch/issues/135712).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec torchrun \
    --nnodes "${NODES:-1}" \
    --nproc-per-node "${GPUS:-gpu}" \
    --max-restarts "${RESTARTS:-3}" \
    --rdzv-backend c10d \
    --rdzv-endpoint "${RDZV:-localhost:0}" \
    --rdzv-id "${RDZV_ID:-hf_ssl}" \
    -m hf_ssl pretrain "$@"
