"""Source of the recurrent layers as it stands in generated files: a loop over time, and the sweep back through it."""

LSTM = '''
def lstm_layer(x, h, c, w_ih, w_hh, b_ih, b_hh, reverse):
    """An LSTM layer over x [time, batch, features] from the state h, c. Returns all h, the last c, all gates, all c."""
    drive = x @ w_ih.t() if b_ih is None else torch.nn.functional.linear(x, w_ih, b_ih + b_hh)
    recurrent, split = w_hh.t(), 2 * h.shape[1]
    states, gates, cells = [], [], []
    for drive_t in reversed(drive.unbind()) if reverse else drive.unbind():
        gate = torch.addmm(drive_t, h, recurrent)
        i, f, g, o = gate.chunk(4, 1)
        gate[:, :split].sigmoid_()
        g.tanh_()
        o.sigmoid_()
        c = torch.addcmul(f * c, i, g)
        h = o * torch.tanh(c)
        states.append(h)
        gates.append(gate)
        cells.append(c)
    if reverse:
        states, gates, cells = states[::-1], gates[::-1], cells[::-1]
    return torch.stack(states), c, torch.stack(gates), torch.stack(cells)
'''

LSTM_SWEEP = '''
def lstm_sweep(err, cell_err, gates, cells, c, w_hh, reverse):
    """Errors of an LSTM layer's gates before their nonlinearity [time, batch, 4 hidden], and of its first h and c."""
    i, f, g, o = gates.chunk(4, 2)
    before = torch.cat((cells[1:], c[None]) if reverse else (c[None], cells[:-1]))
    squashed = torch.tanh(cells)
    cell_gain = o * (1 - squashed * squashed)
    slopes = torch.stack((i * (1 - i) * g, f * (1 - f) * before, (1 - g * g) * i), 2)
    out_slope = o * (1 - o) * squashed
    steps = range(len(err)) if reverse else reversed(range(len(err)))
    errors = []
    back_h, back_c = torch.zeros_like(c), torch.zeros_like(c) if cell_err is None else cell_err
    for t in steps:
        err_h = err[t] + back_h
        err_c = torch.addcmul(back_c, err_h, cell_gain[t])
        error = torch.cat(((err_c[:, None] * slopes[t]).flatten(1), err_h * out_slope[t]), 1)
        errors.append(error)
        back_h, back_c = error @ w_hh, err_c * f[t]
    return torch.stack(errors if reverse else errors[::-1]), back_h, back_c
'''

GRU = '''
def gru_layer(x, h, w_ih, w_hh, b_ih, b_hh, reverse):
    """A GRU layer over x [time, batch, features] from the state h. Returns all h, and r, z, n, n's recurrent part."""
    drive = torch.nn.functional.linear(x, w_ih, b_ih)
    split = 2 * h.shape[1]
    states, gates = [], []
    for drive_t in reversed(drive.unbind()) if reverse else drive.unbind():
        recurrent = torch.nn.functional.linear(h, w_hh, b_hh)
        r_z = torch.sigmoid(drive_t[:, :split] + recurrent[:, :split])
        r, z = r_z.chunk(2, 1)
        n = torch.tanh(torch.addcmul(drive_t[:, split:], r, recurrent[:, split:]))
        h = torch.lerp(n, h, z)
        states.append(h)
        gates.append(torch.cat((r_z, n, recurrent[:, split:]), 1))
    if reverse:
        states, gates = states[::-1], gates[::-1]
    return torch.stack(states), torch.stack(gates)
'''

GRU_SWEEP = '''
def gru_sweep(err, gates, states, h, w_hh, reverse):
    """Errors of what a GRU layer's gates get from input and state [time, batch, 3 hidden], and of its first state."""
    r, z, n, recurrent = gates.chunk(4, 2)
    before = torch.cat((states[1:], h[None]) if reverse else (h[None], states[:-1]))
    new_slope = (1 - z) * (1 - n * n)
    slopes = torch.stack((new_slope * recurrent * r * (1 - r), (before - n) * z * (1 - z), new_slope * r), 2)
    steps = range(len(err)) if reverse else reversed(range(len(err)))
    errors, err_states = [], []
    back = torch.zeros_like(h)
    for t in steps:
        err_h = err[t] + back
        error = (err_h[:, None] * slopes[t]).flatten(1)
        errors.append(error)
        err_states.append(err_h)
        back = torch.addmm(err_h * z[t], error, w_hh)
    if not reverse:
        errors, err_states = errors[::-1], err_states[::-1]
    recur = torch.stack(errors)
    drive = torch.cat((recur[:, :, : 2 * h.shape[1]], torch.stack(err_states) * new_slope), 2)
    return drive, recur, back
'''

RNN = '''
def rnn_layer(x, h, w_ih, w_hh, b_ih, b_hh, nonlinearity, reverse):
    """A recurrent layer over x [time, batch, features] from the state h. Returns all h."""
    drive = x @ w_ih.t() if b_ih is None else torch.nn.functional.linear(x, w_ih, b_ih + b_hh)
    recurrent, squash = w_hh.t(), torch.tanh if nonlinearity == "tanh" else torch.relu
    states = []
    for drive_t in reversed(drive.unbind()) if reverse else drive.unbind():
        h = squash(torch.addmm(drive_t, h, recurrent))
        states.append(h)
    return torch.stack(states[::-1] if reverse else states)
'''

RNN_SWEEP = '''
def rnn_sweep(err, states, w_hh, nonlinearity, reverse):
    """Errors of a recurrent layer before its nonlinearity [time, batch, hidden], and of its first state."""
    slopes = 1 - states * states if nonlinearity == "tanh" else (states > 0).to(states.dtype)
    steps = range(len(err)) if reverse else reversed(range(len(err)))
    errors, back = [], torch.zeros_like(err[0])
    for t in steps:
        error = (err[t] + back) * slopes[t]
        errors.append(error)
        back = error @ w_hh
    return torch.stack(errors if reverse else errors[::-1]), back
'''
