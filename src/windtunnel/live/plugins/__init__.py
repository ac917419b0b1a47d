"""Planner plugins over gRPC (extra `grpc`): the wire form of the contract, clients, the registry, and a server for plugin authors."""
