"""Results of other trainers, converted to run folders."""
