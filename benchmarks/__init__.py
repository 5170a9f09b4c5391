"""What the operators gain, measured on the machine at hand: ``python -m benchmarks --help``.

Run from the checkout; nothing of this is installed. :mod:`benchmarks.workloads` has the cases, each
with the plain PyTorch expression that tests and benchmarks share; :mod:`benchmarks.measure` times
them; :mod:`benchmarks.summary` makes tables of result files; :mod:`benchmarks.gpu_check` does all
that needs a GPU in one command.
"""

#: What a run writes, in a folder of its own.
JSON_NAME, CSV_NAME = "benchmarks.json", "benchmarks.csv"
HOST_CSV_NAME = "host.csv"
#: Of the other commands: .json and .csv.
MODELS_NAME, LOGITS_NAME, TRAINING_NAME = "models", "logits", "training"
