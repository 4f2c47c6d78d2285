"""What is asked: the workloads and their customers, the load generator, and what looks on meanwhile."""
