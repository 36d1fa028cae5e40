"""Numbers with a meaning of their own, for modules that the records are made of."""

BASE_ID = -1  # adapter_id of a request to the base model
