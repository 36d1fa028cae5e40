"""Model surgery, runner, sampler, link: bytes on the device."""
