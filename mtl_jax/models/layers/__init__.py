"""The layers by name. A new one is a subclass of `Layer` and a line in `LAYERS`."""

from mtl_jax.models.layers.base import Layer
from mtl_jax.models.layers.convolution import CNN
from mtl_jax.models.layers.recurrent import LSTM, RNN, BiLSTM
from mtl_jax.models.layers.transformer import TransformerLayer

LAYERS: dict[str, type[Layer]] = {
    "transformer": TransformerLayer,
    "lstm": LSTM,
    "bilstm": BiLSTM,
    "rnn": RNN,
    "cnn": CNN,
}
