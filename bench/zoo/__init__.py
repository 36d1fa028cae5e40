"""The zoo: a tiny base model and adapters whose right answers are known in advance."""
