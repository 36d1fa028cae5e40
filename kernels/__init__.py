"""The numbers: one folder per operator. Knows tensors; no requests, no owners of pages."""
