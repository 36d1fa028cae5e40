"""Workloads, the zoo, load generators and benches of Lorry."""
