"""Recurrent networks: cells written out and unrolled by a Python loop, and torch's own."""

from functools import partial

import torch
from torch import Tensor, nn

from zoo.case import NUMBERS, Case, catalogue, draw, normal, squared_error, token_loss, tokens


def scaled(*shape: int) -> nn.Parameter:
    """A weight with normal entries, scaled by the fan-in (its last dimension)."""
    return nn.Parameter(torch.randn(shape) / shape[-1] ** 0.5)


class PaperRNN(nn.Module):
    """The RNN of arXiv 2006.04182: hₜ = tanh(W_x xₜ + W_h hₜ₋₁), yₜ = W_y hₜ, x of shape `[batch, time, features]`."""

    def __init__(self, steps: int = 6, features: int = 4, hidden: int = 7, classes: int = 3) -> None:
        super().__init__()
        self.steps = steps
        self.W_x = scaled(hidden, features)
        self.W_h = scaled(hidden, hidden)
        self.W_y = scaled(classes, hidden)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.W_h.shape[0])
        outputs = []
        for step in range(self.steps):
            h = torch.tanh(x[:, step] @ self.W_x.T + h @ self.W_h.T)
            outputs.append(h @ self.W_y.T)
        return torch.stack(outputs, dim=1)


class PaperLSTM(nn.Module):
    """The LSTM of arXiv 2006.04182 over embedded tokens: every gate a matrix over the input joined to the state."""

    def __init__(self, steps: int = 5, vocabulary: int = 11, features: int = 4, hidden: int = 6) -> None:
        super().__init__()
        self.steps = steps
        self.embedding = nn.Embedding(vocabulary, features)
        self.W_f = scaled(hidden, features + hidden)
        self.W_i = scaled(hidden, features + hidden)
        self.W_c = scaled(hidden, features + hidden)
        self.W_o = scaled(hidden, features + hidden)
        self.W_y = scaled(vocabulary, hidden)
        self.b_f = nn.Parameter(torch.ones(hidden))
        self.b_i = nn.Parameter(torch.zeros(hidden))
        self.b_c = nn.Parameter(torch.zeros(hidden))
        self.b_o = nn.Parameter(torch.zeros(hidden))
        self.h_0 = nn.Parameter(0.1 * torch.randn(hidden))
        self.c_0 = nn.Parameter(0.1 * torch.randn(hidden))

    def forward(self, words: Tensor) -> Tensor:
        h = self.h_0.expand(words.shape[0], -1)
        c = self.c_0.expand(words.shape[0], -1)
        outputs = []
        for step in range(self.steps):
            z = torch.cat([self.embedding(words[:, step]), h], dim=1)
            f = torch.sigmoid(z @ self.W_f.T + self.b_f)
            i = torch.sigmoid(z @ self.W_i.T + self.b_i)
            o = torch.sigmoid(z @ self.W_o.T + self.b_o)
            c = f * c + i * torch.tanh(z @ self.W_c.T + self.b_c)
            h = o * torch.tanh(c)
            outputs.append(h @ self.W_y.T)
        return torch.stack(outputs, dim=1)


class UnrolledLSTM(nn.Module):
    """An LSTM whose four gates are one linear map and `chunk(4)`; its size is for benchmarks."""

    def __init__(self, steps: int = 50, features: int = 32, hidden: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.steps, self.hidden = steps, hidden
        self.gates = nn.Linear(features + hidden, 4 * hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.hidden)
        c = x.new_zeros(x.shape[0], self.hidden)
        for step in range(self.steps):
            i, f, g, o = self.gates(torch.cat([x[:, step], h], dim=1)).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)


class Tagger(nn.Module):
    """Two bidirectional layers of nn.LSTM over embedded tokens, read at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 5)
        self.lstm = nn.LSTM(5, 6, num_layers=2, batch_first=True, dropout=0.0, bidirectional=True)
        self.fc = nn.Linear(12, 4)

    def forward(self, words: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.embedding(words))
        return self.fc(hidden)


class GRUClassifier(nn.Module):
    """nn.GRU read at its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 6, num_layers=2, batch_first=True)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, last = self.gru(x)
        return self.fc(last[-1])


class RNNStates(nn.Module):
    """nn.RNN with relu from a learned initial state; both its outputs are returned."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 5, nonlinearity="relu", batch_first=True)
        self.h_0 = nn.Parameter(0.1 * torch.randn(1, 1, 5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.rnn(x, self.h_0.repeat(1, x.shape[0], 1))


class Seq2Seq(nn.Module):
    """An encoder's last state starts a decoder that attends to every state of the encoder."""

    def __init__(self, steps: int = 4, words: int = 9, hidden: int = 6) -> None:
        super().__init__()
        self.steps = steps
        self.embedding = nn.Embedding(words, 5)
        self.encoder = nn.LSTM(5, hidden, batch_first=True)
        self.decoder = nn.GRUCell(5 + hidden, hidden)
        self.out = nn.Linear(hidden, words)

    def forward(self, source: Tensor, shifted: Tensor) -> Tensor:
        states, (h, _) = self.encoder(self.embedding(source))
        h = h[0]
        outputs = []
        for step in range(self.steps):
            weights = torch.softmax(torch.bmm(states, h.unsqueeze(2)), dim=1)
            context = (weights * states).sum(1)
            h = self.decoder(torch.cat([self.embedding(shifted[:, step]), context], 1), h)
            outputs.append(self.out(h))
        return torch.stack(outputs, 1)


RECURRENT = catalogue(
    Case("paper_rnn", PaperRNN, draw(normal(3, 6, 4)), squared_error, NUMBERS),
    Case("paper_lstm", PaperLSTM, draw(tokens(11, 3, 5)), token_loss, tokens(11, 3, 5)),
    Case("unrolled_lstm", partial(UnrolledLSTM, steps=8), draw(normal(3, 8, 32)), squared_error, NUMBERS),
    Case("unrolled_lstm_50", UnrolledLSTM, draw(normal(16, 50, 32)), squared_error, NUMBERS, slow=True),
    Case("lstm_bidirectional", Tagger, draw(tokens(13, 3, 7)), token_loss, tokens(4, 3, 7)),
    Case("gru", GRUClassifier, draw(normal(3, 7, 5)), squared_error, NUMBERS),
    Case("rnn_relu", RNNStates, draw(normal(3, 6, 4)), squared_error, NUMBERS),
    Case("seq2seq", Seq2Seq, draw(tokens(9, 3, 5), tokens(9, 3, 4)), token_loss, tokens(9, 3, 4)),
)
