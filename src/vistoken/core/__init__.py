"""Contracts of the pipeline: tables, part protocols, the part registry and errors."""
