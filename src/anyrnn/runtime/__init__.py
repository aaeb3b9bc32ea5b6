"""Running programs: plans, memory, autograd; what every backend shares."""
