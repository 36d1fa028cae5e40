"""Proofs too long for `make test`: what Lorry answers against what PEFT answers."""
