"""Files written so that nothing is lost: whole or not at all, and never over something else."""
