"""A policy on another machine: what goes over the wire, the server, and the engine that asks it."""
