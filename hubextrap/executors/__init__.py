"""Who does the units of a plan: this process, a Ray cluster, Slurm, HF Jobs."""
