"""What the files of a run folder are called."""

CONFIG, ROUNDS, CLIENTS, SUMMARY = "config.toml", "rounds.jsonl", "clients.jsonl", "summary.json"
KERNELS, MEMORY, LOG, MODEL = "kernels.json", "memory.json", "run.log", "model.pt"
ENCODING, REPORT = "encoding.json", "report.html"
PARTITIONS = "partitions.npz"
CHECKPOINTS, STATES = "checkpoints", "states"
