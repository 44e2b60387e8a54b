import torch

from reca_fast.memory import host_empty, watch_host_memory


def test_whoever_watches_sees_every_allocation() -> None:
    seen: list[torch.Tensor] = []
    with watch_host_memory(seen.append):
        tensor = host_empty((3, 5), torch.bfloat16)
    host_empty((1,), torch.float32)
    assert [id(t) for t in seen] == [id(tensor)]
    assert tensor.shape == (3, 5) and tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu"
