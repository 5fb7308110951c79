"""The speedrun as a Kubeflow pipeline: compiled to a file, run by a backend or, without one, here.

`parameters` says what a run can be given, `compile` writes the file, `step` is
what each of its containers runs, `interpret` executes the file on this machine.
Knows nothing of what stages do or of how jobs are made.
"""
