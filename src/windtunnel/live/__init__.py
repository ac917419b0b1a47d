"""The live world: real engines over HTTP, real time."""
