"""The brain: request state, plan, cost model, policies. Plain data, no torch, no grpc."""
