"""What the files of a run folder are called."""

CONFIG, ROUNDS, CLIENTS, SUMMARY = "config.toml", "rounds.jsonl", "clients.jsonl", "summary.json"
KERNELS, MEMORY, LOG, MODEL = "kernels.json", "memory.json", "run.log", "model.pt"
ENCODING, REPORT = "encoding.json", "report.html"
PARTITIONS = "partitions.npz"
#: What began the run and where, and the labels of its clients.
PROVENANCE, LABELS = "provenance.json", "labels.json"
CHECKPOINTS, STATES = "checkpoints", "states"
