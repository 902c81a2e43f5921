"""What a model can be made to learn, one objective a file.

Each file reads from the formula to the task: the pure functions that make inputs and targets, the
batch, the loss, and `task(...)`, which puts them together for the loop.
"""
