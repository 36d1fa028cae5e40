"""The wire: lorry.proto, the code generated from it, and the Python clients."""
