"""Philox4x32-10 in NumPy: the numbers of `engine::rng`, so that weights and inputs need not be stored."""

import numpy as np

PROBE = 9  # engine::rng::Purpose::Probe
_M = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_W = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox4x32_10(counter, key):
    """`counter`: four arrays or numbers that broadcast, `key`: two numbers; returns four u64 arrays below 2^32."""
    c = [np.asarray(x, dtype=np.uint64) for x in counter]
    k0, k1 = key
    for r in range(10):
        if r:
            k0, k1 = (k0 + _W[0]) & 0xFFFFFFFF, (k1 + _W[1]) & 0xFFFFFFFF
        p0, p1 = _M[0] * c[0], _M[1] * c[2]
        c = [(p1 >> _32) ^ c[1] ^ np.uint64(k0), p1 & _LOW, (p0 >> _32) ^ c[3] ^ np.uint64(k1), p0 & _LOW]
    return c


def bits(seed, count, item, step=0, purpose=PROBE):
    """u64[count]: word e % 4 of counter (e / 4, item, step, purpose) for element e."""
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)
    words = philox4x32_10((blocks, item, step, purpose), (seed & 0xFFFFFFFF, seed >> 32))
    return np.stack([np.broadcast_to(w, blocks.shape) for w in words], axis=1).reshape(-1)[:count]


def uniform(seed, count, item, step=0, purpose=PROBE):
    """f64[count] in (0, 1), each exact in f32: (bits >> 9)·2^-23 + 2^-24."""
    return (bits(seed, count, item, step, purpose) >> np.uint64(9)).astype(np.float64) * 2.0**-23 + 2.0**-24


def symmetric(seed, shape, item, radius, step=0):
    """f32 in (-radius, radius): the f32 product of 2u - 1 (exact) and the f32 radius."""
    u = uniform(seed, int(np.prod(shape)), item, step)
    return ((2 * u - 1).astype(np.float32) * np.float32(radius)).reshape(shape)


if __name__ == "__main__":
    # Random123's known answers.
    assert [int(x) for x in philox4x32_10((0, 0, 0, 0), (0, 0))] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    f = 0xFFFFFFFF
    assert [int(x) for x in philox4x32_10((f, f, f, f), (f, f))] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    print("ok")
