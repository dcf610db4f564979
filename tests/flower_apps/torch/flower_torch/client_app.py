"""A small network of PyTorch."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_torch.task import Net

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    generator = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
    x = torch.randn(32, 4, generator=generator)
    y = x.sum(dim=1, keepdim=True)
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(net(x), y)
        loss.backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": len(y), "loss": float(loss)})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)
