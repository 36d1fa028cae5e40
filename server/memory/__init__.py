"""Who owns which page: pool and adapter residency. Page numbers, not bytes."""
