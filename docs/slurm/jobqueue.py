"""Associations on SLURM jobs that come and go.

    python jobqueue.py ASN... --output-dir OUT [options]

Each worker is a job of its own (package dask-jobqueue). Run it where jobs can be submitted from,
and leave it running; adapt queue, account and sizes.
"""

import subprocess
import sys

from dask_jobqueue import SLURMCluster

THREADS = 2

if __name__ == "__main__":
    with SLURMCluster(
        cores=1,  # one task at a time
        job_cpu=THREADS,
        memory="4GiB",
        walltime="02:00:00",
        job_script_prologue=[f"export OMP_NUM_THREADS={THREADS} OPENBLAS_NUM_THREADS={THREADS}"],
        # queue="...", account="...", job_extra_directives=["--gpus=1"],
    ) as cluster:
        cluster.adapt(minimum=1, maximum=50)
        sys.exit(
            subprocess.run(
                ["gpucoron", *sys.argv[1:], "--scheduler", cluster.scheduler_address]
            ).returncode
        )
