"""The plan: a graph made into a program, a short list of operations over buffers.

A program says nothing of lanes or instruction sets. It is bytes, which the core checks and runs.
"""
