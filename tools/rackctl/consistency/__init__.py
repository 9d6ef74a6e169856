"""Whether a volume told its clients the truth: a workload, the history of what it saw, and the checks made of that."""
