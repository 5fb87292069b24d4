"""The kinds of layers by name. A further kind is one module and one line here.

Every layer is for one column and one block of packed rows: `__call__(x [R, T, D], segment int32[R, T], noise=None)
-> dtype [R, T, D']`, and nothing in it crosses a segment. Fields are frozen hyperparameters; parameters are
float32, `dtype` (float32 or bfloat16) is that of the computation. Salts of dropout repeat
from layer to layer: the caller gives each layer keys of its own.
"""

from mtl_jax.models.layers.convolution import CNN
from mtl_jax.models.layers.recurrent import LSTM, RNN, BiLSTM
from mtl_jax.models.layers.transformer import TransformerLayer

LAYERS = {"transformer": TransformerLayer, "lstm": LSTM, "bilstm": BiLSTM, "rnn": RNN, "cnn": CNN}
