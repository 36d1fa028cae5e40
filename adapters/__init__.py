"""The cargo: PEFT files and their checks, page images, the durable store, the host tier."""
