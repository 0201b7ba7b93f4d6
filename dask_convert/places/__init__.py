"""Where workers come from: this machine, SLURM, a scheduler that is there."""
