"""The compile check: every shipped kernel as a binary for chips that need not be there."""
