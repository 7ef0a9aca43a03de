"""States of a Keras model that its caller hands from call to call."""

from __future__ import annotations

from fastlstm.sources.keras.network import Call, Network, Tensor, tensors_in

__all__ = ["paired_states"]

_CELLS = (
    *("LSTM", "GRU", "SimpleRNN", "RNN", "CuDNNLSTM", "CuDNNGRU"),
    *("LSTMCell", "GRUCell", "SimpleRNNCell"),
)


def paired_states(network: Network) -> dict[Tensor, tuple[Tensor, Tensor]]:
    """Inputs that are only the initial states of a layer whose last states are outputs, in order.

    What such an input is given is what the output was in the call before.

    Returns
    -------
    dict of Tensor to (Tensor, Tensor)
        Input -> the first tensor that the layer gives, and the output.
    """
    inputs = {tensor for _, tensor in network.inputs}
    outputs = {tensor for _, tensor in network.outputs}
    readers: dict[Tensor, int] = {}
    for call in network.calls:
        for tensor in call.reads:
            readers[tensor] = readers.get(tensor, 0) + 1
    found: dict[Tensor, tuple[Tensor, Tensor]] = {}
    for call in network.calls:
        states = _initial_states(call)
        ends = [Tensor(call.entry.name, call.number, n + 1) for n in range(len(states))]
        if all(s in inputs and readers[s] == 1 for s in states) and outputs.issuperset(ends):
            rows = Tensor(call.entry.name, call.number)
            found |= {state: (rows, end) for state, end in zip(states, ends, strict=True)}
    return {} if len(found) >= len(inputs) else found


def _initial_states(call: Call) -> list[Tensor]:
    if call.entry.class_name not in _CELLS:
        return []
    return [*list(tensors_in(call.arguments))[1:], *tensors_in(call.named.get("initial_state"))]
