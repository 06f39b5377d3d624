"""Source of recurrent layers over packed rows as it stands in generated files: a loop over time, and the sweep back.

Step t has `sizes[t]` rows, those of the sequences that last longer than t, the longest first. A sequence keeps its
state where it has ended, or not begun in the reverse direction, so that both directions are one loop.
"""

SIZES = '''
def batch_sizes(lengths, batch, steps, most, longest, device):
    """How many of the sequences last longer than each step. Raises RuntimeError where lengths do not fit."""
    lengths = lengths.tolist()
    if len(lengths) != batch:
        raise RuntimeError(f"{len(lengths)} lengths are given for {batch} packed sequences")
    if not lengths or min(lengths) <= 0:
        raise RuntimeError("the length of every packed sequence must be at least 1")
    if max(lengths) > steps:
        raise RuntimeError(f"a packed sequence is to have {max(lengths)} steps, and the padded ones have {steps}")
    if most is not None and max(lengths) > most:
        raise RuntimeError(f"a packed sequence of {max(lengths)} steps is to be padded to a total_length of {most}")
    if lengths != sorted(lengths, reverse=True):
        raise RuntimeError("lengths must be sorted in decreasing order, or packed with enforce_sorted=False")
    if longest and max(lengths) != steps:
        raise RuntimeError(
            f"compiled for a longest sequence of all {steps} steps, and the longest here has {max(lengths)}: "
            "give pad_packed_sequence a total_length"
        )
    return torch.tensor([sum(n > t for n in lengths) for t in range(max(lengths))], device=device)
'''

LSTM = '''
def packed_lstm(x, sizes, h, c, w_ih, w_hh, b_ih, b_hh, w_hr, reverse):
    """An LSTM layer over packed rows x from the state h, c.

    Returns all h, the last c of each sequence, and of each row the gates, c, and the h and c before it.
    """
    drive = x @ w_ih.t() if b_ih is None else torch.nn.functional.linear(x, w_ih, b_ih + b_hh)
    recurrent, split, sizes = w_hh.t(), 2 * c.shape[1], sizes.tolist()
    kept = []
    for drive_t in reversed(drive.split(sizes)) if reverse else drive.split(sizes):
        n = len(drive_t)
        before_h, before_c = h[:n], c[:n]
        gate = torch.addmm(drive_t, before_h, recurrent)
        i, f, g, o = gate.chunk(4, 1)
        gate[:, :split].sigmoid_()
        g.tanh_()
        o.sigmoid_()
        cell = torch.addcmul(f * before_c, i, g)
        state = o * torch.tanh(cell)
        state = state if w_hr is None else state @ w_hr.t()
        h, c = torch.cat((state, h[n:])), torch.cat((cell, c[n:]))
        kept.append((state, gate, cell, before_h, before_c))
    states, *rest = map(torch.cat, zip(*(kept[::-1] if reverse else kept)))
    return states, c, *rest
'''

LSTM_SWEEP = '''
def packed_lstm_sweep(err, c_err, gates, cells, before_c, sizes, h, c, w_hh, w_hr, reverse):
    """Errors of an LSTM layer's gates before their nonlinearity [rows, 4 hidden], of its h, and of its first h, c."""
    i, f, g, o = gates.chunk(4, 1)
    sizes, squashed = sizes.tolist(), torch.tanh(cells)
    slopes = torch.stack((i * (1 - i) * g, f * (1 - f) * before_c, (1 - g * g) * i), 1)
    rows = (err, o * (1 - squashed * squashed), slopes, o * (1 - o) * squashed, f)
    steps = list(zip(*(r.split(sizes) for r in rows)))
    back_h = torch.zeros_like(h)
    back_c = torch.zeros_like(c) if c_err is None else c_err
    errors, state_errors = [], []
    for err_t, cell_gain, slope, out_slope, forget in steps if reverse else reversed(steps):
        n = len(err_t)
        err_h = err_t + back_h[:n]
        state_errors.append(err_h)
        err_h = err_h if w_hr is None else err_h @ w_hr
        err_c = torch.addcmul(back_c[:n], err_h, cell_gain)
        error = torch.cat(((err_c[:, None] * slope).flatten(1), err_h * out_slope), 1)
        errors.append(error)
        back_h, back_c = torch.cat((error @ w_hh, back_h[n:])), torch.cat((err_c * forget, back_c[n:]))
    if not reverse:
        errors, state_errors = errors[::-1], state_errors[::-1]
    return torch.cat(errors), torch.cat(state_errors), back_h, back_c
'''

GRU = '''
def packed_gru(x, sizes, h, w_ih, w_hh, b_ih, b_hh, reverse):
    """A GRU layer over packed rows x from the state h.

    Returns all h, and of each row r, z, n, n's recurrent part, and the h before it.
    """
    drive, split, sizes = torch.nn.functional.linear(x, w_ih, b_ih), 2 * h.shape[1], sizes.tolist()
    kept = []
    for drive_t in reversed(drive.split(sizes)) if reverse else drive.split(sizes):
        before = h[: len(drive_t)]
        recurrent = torch.nn.functional.linear(before, w_hh, b_hh)
        r_z = torch.sigmoid(drive_t[:, :split] + recurrent[:, :split])
        r, z = r_z.chunk(2, 1)
        n = torch.tanh(torch.addcmul(drive_t[:, split:], r, recurrent[:, split:]))
        state = torch.lerp(n, before, z)
        h = torch.cat((state, h[len(drive_t) :]))
        kept.append((state, torch.cat((r_z, n, recurrent[:, split:]), 1), before))
    return tuple(map(torch.cat, zip(*(kept[::-1] if reverse else kept))))
'''

GRU_SWEEP = '''
def packed_gru_sweep(err, gates, before, sizes, h, w_hh, reverse):
    """Errors of what a GRU layer's gates get from input and state [rows, 3 hidden], and of its first state."""
    r, z, n, recurrent = gates.chunk(4, 1)
    new_slope, sizes = (1 - z) * (1 - n * n), sizes.tolist()
    slopes = torch.stack((new_slope * recurrent * r * (1 - r), (before - n) * z * (1 - z), new_slope * r), 1)
    steps = list(zip(err.split(sizes), slopes.split(sizes), z.split(sizes)))
    back = torch.zeros_like(h)
    errors, state_errors = [], []
    for err_t, slope, keep in steps if reverse else reversed(steps):
        err_h = err_t + back[: len(err_t)]
        error = (err_h[:, None] * slope).flatten(1)
        errors.append(error)
        state_errors.append(err_h)
        back = torch.cat((torch.addmm(err_h * keep, error, w_hh), back[len(err_t) :]))
    if not reverse:
        errors, state_errors = errors[::-1], state_errors[::-1]
    recur = torch.cat(errors)
    drive = torch.cat((recur[:, : 2 * h.shape[1]], torch.cat(state_errors) * new_slope), 1)
    return drive, recur, back
'''

RNN = '''
def packed_rnn(x, sizes, h, w_ih, w_hh, b_ih, b_hh, nonlinearity, reverse):
    """A recurrent layer over packed rows x from the state h.

    Returns all h, and the h before each row.
    """
    drive = x @ w_ih.t() if b_ih is None else torch.nn.functional.linear(x, w_ih, b_ih + b_hh)
    recurrent, squash = w_hh.t(), torch.tanh if nonlinearity == "tanh" else torch.relu
    kept, sizes = [], sizes.tolist()
    for drive_t in reversed(drive.split(sizes)) if reverse else drive.split(sizes):
        before = h[: len(drive_t)]
        state = squash(torch.addmm(drive_t, before, recurrent))
        h = torch.cat((state, h[len(drive_t) :]))
        kept.append((state, before))
    return tuple(map(torch.cat, zip(*(kept[::-1] if reverse else kept))))
'''

RNN_SWEEP = '''
def packed_rnn_sweep(err, states, sizes, h, w_hh, nonlinearity, reverse):
    """Errors of a recurrent layer before its nonlinearity [rows, hidden], and of its first state."""
    slopes = 1 - states * states if nonlinearity == "tanh" else (states > 0).to(states.dtype)
    sizes = sizes.tolist()
    steps = list(zip(err.split(sizes), slopes.split(sizes)))
    errors, back = [], torch.zeros_like(h)
    for err_t, slope in steps if reverse else reversed(steps):
        error = (err_t + back[: len(err_t)]) * slope
        errors.append(error)
        back = torch.cat((error @ w_hh, back[len(err_t) :]))
    return torch.cat(errors if reverse else errors[::-1]), back
'''
