"""push_messages and pull_messages, and what errors look like."""

import time

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


def ask(grid: Grid, action: str) -> list[Message]:
    nodes = sorted(grid.get_node_ids())
    waiting = set(grid.push_messages([Message(RecordDict(), node, f"query.{action}", group_id="1") for node in nodes]))
    replies = []
    while waiting:
        for reply in grid.pull_messages(waiting):
            waiting.remove(reply.metadata.reply_to_message_id)
            replies.append(reply)
        time.sleep(0.05)
    return sorted(replies, key=lambda reply: reply.metadata.src_node_id)


@app.main()
def main(grid: Grid, context: Context) -> None:
    while len(list(grid.get_node_ids())) < 3:
        time.sleep(0.2)
    replies = ask(grid, "mean")
    for reply in replies:
        assert reply.content["config"]["node"] == reply.metadata.src_node_id == reply.content["config"]["dst"]
    sums = sorted(reply.content["sums"]["0"].numpy().tolist() for reply in replies)
    codes = [[reply.error.code for reply in ask(grid, action)] for action in ("fails", "refuses", "unknown")]
    np.savez(str(context.run_config["output"]), np.array(sums), np.array(codes))
