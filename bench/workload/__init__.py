"""Workloads: who asks what, of which adapter, when. Seeded, written to a file, replayed."""
