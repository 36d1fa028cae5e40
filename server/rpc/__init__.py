"""The gRPC front end: handlers, text, error mapping."""
