"""numpyapp: no strategy, but a loop over the grid."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Ask all nodes for their size, then average their weights in rounds."""
    nodes = list(grid.get_node_ids())
    sizes = {
        reply.metadata.src_node_id: reply.content["size"]["examples"]
        for reply in grid.send_and_receive(
            [Message(RecordDict(), node, "query.size") for node in nodes]
        )
    }
    weights = np.zeros(5)
    for server_round in range(1, context.run_config["rounds"] + 1):
        content = RecordDict({"arrays": ArrayRecord({"weights": Array(weights)})})
        messages = [Message(content, node, "train", group_id=str(server_round)) for node in nodes]
        replies = [reply for reply in grid.send_and_receive(messages) if reply.has_content()]
        shares = [sizes[reply.metadata.src_node_id] for reply in replies]
        models = [reply.content["arrays"]["weights"].numpy() for reply in replies]
        weights = sum(share * model for share, model in zip(shares, models, strict=True))
        weights = weights / sum(shares)
        loss = sum(reply.content["metrics"]["loss"] for reply in replies) / len(replies)
        print(f"round {server_round}: loss {loss:.4f}")
    context.state["final"] = MetricRecord({"loss": loss})
    context.state["arrays"] = ArrayRecord({"weights": Array(weights)})
