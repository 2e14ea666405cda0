// Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245), not causal, without materialising the scores: online
// softmax and recomputation in the backward (Dao 2023, FlashAttention-2, arXiv 2307.08691).
//
// qkv [B, T, (H + 2 G) D], columns [q heads | k heads | v heads]; out [B, T, H D]; lse [B, H, T] f32. Query head h reads
// kv head h / (H / G). With S = Q K^T / sqrt(D), row by row:
//
//   P = exp(S - m), l = sum P, out = P V / l, lse = m + log l
//   Delta = sum(dout out), P = exp(S - lse), dS = P (dout V^T - Delta)
//   dQ = dS K / sqrt(D), dK = sum over the group's heads of dS^T Q / sqrt(D), dV = sum over the group's heads of P^T dout
//
// Two forms. FMA for f32 (common/attention_fma.cuh): computed from shared memory, a warp owns R rows. Tensor cores for bf16
// (common/attention_mma.cuh): a warp owns 16 rows; P and dS are rounded to bf16 before they are multiplied. In both, what
// streams past (keys and values; in _bwd_kv the group's queries and output gradients) comes in tiles through shared memory,
// and the order of every sum depends on T, H, G and D alone: never on the batch.
//
// Floor: 4 B H T^2 D operations forward and 14 B H T^2 D backward (scores and dP are computed in both of its kernels; 18 in
// bf16 where D > 128, whose _bwd_kv computes them twice) at the FMA or tensor rate; qkv and out are read and written once
// each as long as a head's K and V stay in L2.
//
// D <= 256: the entries _narrow are for D <= 64, _wide for up to 128, _widest for more. _bwd_q writes delta [B, H, T], which
// _bwd_kv reads. Launches: _fwd and _bwd_q: grid B H ceil(T / rows of a block), _bwd_kv: grid B G ceil(T / rows of a block),
// and in bf16 _widest 2 in y, halves of the columns of dK and dV.
//
// FMA: blocks of 128 threads, 4 R rows each: R = 8 if narrow, else 4 (_fwd) or 2 (_bwd_*). With d4 = D rounded up to 4 and
// k4 = 4 (d4 / 4 | 1) (rows apart by an odd number of 16 bytes: no bank conflicts), dynamic shared memory in floats: _fwd
// 4 R (d4 + 32) + 32 (k4 + d4), _bwd_q 4 R (2 d4 + 32) + 64 k4, _bwd_kv 4 R (2 d4 + 64) + 64 k4. Of _wide and _widest
// that leaves room for few blocks, so that these may have more registers than the compiler would give them (second launch bound).
//
// Tensor cores: blocks of up to 8 warps, 16 rows each. With d8 = D rounded up to 16, plus 8, dynamic shared memory in bf16:
// 2 tile d8, tile = 64 rows for _fwd_narrow, else 32. Where registers have no room for the warps' own rows beside the
// accumulators, these are in shared memory too, blocks have up to 4 warps, and each row of a block takes d8 more (q:
// _fwd_widest) or 2 d8 more (q and dout: _bwd_q_widest; k and v: _bwd_kv_wide, _bwd_kv_widest).
#include "common/attention_fma.cuh"
#include "common/attention_mma.cuh"
#include "common/types.cuh"

extern "C" __global__ void __launch_bounds__(256) attention_fwd_narrow_bf16(
    bf16* __restrict__ out, f32* __restrict__ lse, const bf16* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads,
    u32 d) {
    attention_fwd_mma<4, 4, false>(out, lse, qkv, tokens, heads, kv_heads, d);
}
extern "C" __global__ void __launch_bounds__(128) attention_fwd_narrow_f32(
    f32* __restrict__ out, f32* __restrict__ lse, const f32* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads,
    u32 d) {
    attention_fwd<2, 8>(out, lse, qkv, tokens, heads, kv_heads, d);
}
extern "C" __global__ void __launch_bounds__(256) attention_fwd_wide_bf16(
    bf16* __restrict__ out, f32* __restrict__ lse, const bf16* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads,
    u32 d) {
    attention_fwd_mma<8, 2, false>(out, lse, qkv, tokens, heads, kv_heads, d);
}
extern "C" __global__ void __launch_bounds__(128, 4) attention_fwd_wide_f32(
    f32* __restrict__ out, f32* __restrict__ lse, const f32* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads,
    u32 d) {
    attention_fwd<4, 4>(out, lse, qkv, tokens, heads, kv_heads, d);
}
extern "C" __global__ void __launch_bounds__(128) attention_fwd_widest_bf16(
    bf16* __restrict__ out, f32* __restrict__ lse, const bf16* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads,
    u32 d) {
    attention_fwd_mma<16, 2, true>(out, lse, qkv, tokens, heads, kv_heads, d);
}
extern "C" __global__ void __launch_bounds__(128, 2) attention_fwd_widest_f32(
    f32* __restrict__ out, f32* __restrict__ lse, const f32* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads,
    u32 d) {
    attention_fwd<8, 4>(out, lse, qkv, tokens, heads, kv_heads, d);
}
extern "C" __global__ void __launch_bounds__(256) attention_bwd_q_narrow_bf16(
    bf16* __restrict__ dqkv, f32* __restrict__ delta, const bf16* __restrict__ dout, const bf16* __restrict__ out,
    const f32* __restrict__ lse, const bf16* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d,
    u32 accumulate) {
    attention_bwd_q_mma<4, 2, false>(dqkv, delta, dout, out, lse, qkv, tokens, heads, kv_heads, d, accumulate);
}
extern "C" __global__ void __launch_bounds__(128) attention_bwd_q_narrow_f32(
    f32* __restrict__ dqkv, f32* __restrict__ delta, const f32* __restrict__ dout, const f32* __restrict__ out,
    const f32* __restrict__ lse, const f32* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d,
    u32 accumulate) {
    attention_bwd_q<2, 8>(dqkv, delta, dout, out, lse, qkv, tokens, heads, kv_heads, d, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) attention_bwd_q_wide_bf16(
    bf16* __restrict__ dqkv, f32* __restrict__ delta, const bf16* __restrict__ dout, const bf16* __restrict__ out,
    const f32* __restrict__ lse, const bf16* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d,
    u32 accumulate) {
    attention_bwd_q_mma<8, 2, false>(dqkv, delta, dout, out, lse, qkv, tokens, heads, kv_heads, d, accumulate);
}
extern "C" __global__ void __launch_bounds__(128, 4) attention_bwd_q_wide_f32(
    f32* __restrict__ dqkv, f32* __restrict__ delta, const f32* __restrict__ dout, const f32* __restrict__ out,
    const f32* __restrict__ lse, const f32* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d,
    u32 accumulate) {
    attention_bwd_q<4, 2>(dqkv, delta, dout, out, lse, qkv, tokens, heads, kv_heads, d, accumulate);
}
extern "C" __global__ void __launch_bounds__(128) attention_bwd_q_widest_bf16(
    bf16* __restrict__ dqkv, f32* __restrict__ delta, const bf16* __restrict__ dout, const bf16* __restrict__ out,
    const f32* __restrict__ lse, const bf16* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d,
    u32 accumulate) {
    attention_bwd_q_mma<16, 2, true>(dqkv, delta, dout, out, lse, qkv, tokens, heads, kv_heads, d, accumulate);
}
extern "C" __global__ void __launch_bounds__(128, 2) attention_bwd_q_widest_f32(
    f32* __restrict__ dqkv, f32* __restrict__ delta, const f32* __restrict__ dout, const f32* __restrict__ out,
    const f32* __restrict__ lse, const f32* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d,
    u32 accumulate) {
    attention_bwd_q<8, 2>(dqkv, delta, dout, out, lse, qkv, tokens, heads, kv_heads, d, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) attention_bwd_kv_narrow_bf16(
    bf16* __restrict__ dqkv, const bf16* __restrict__ dout, const f32* __restrict__ lse, const f32* __restrict__ delta,
    const bf16* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d, u32 accumulate) {
    attention_bwd_kv_mma<4, 4, 2, false>(dqkv, dout, lse, delta, qkv, tokens, heads, kv_heads, d, accumulate);
}
extern "C" __global__ void __launch_bounds__(128) attention_bwd_kv_narrow_f32(
    f32* __restrict__ dqkv, const f32* __restrict__ dout, const f32* __restrict__ lse, const f32* __restrict__ delta,
    const f32* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d, u32 accumulate) {
    attention_bwd_kv<2, 8>(dqkv, dout, lse, delta, qkv, tokens, heads, kv_heads, d, accumulate);
}
extern "C" __global__ void __launch_bounds__(128) attention_bwd_kv_wide_bf16(
    bf16* __restrict__ dqkv, const bf16* __restrict__ dout, const f32* __restrict__ lse, const f32* __restrict__ delta,
    const bf16* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d, u32 accumulate) {
    attention_bwd_kv_mma<8, 8, 2, true>(dqkv, dout, lse, delta, qkv, tokens, heads, kv_heads, d, accumulate);
}
extern "C" __global__ void __launch_bounds__(128, 4) attention_bwd_kv_wide_f32(
    f32* __restrict__ dqkv, const f32* __restrict__ dout, const f32* __restrict__ lse, const f32* __restrict__ delta,
    const f32* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d, u32 accumulate) {
    attention_bwd_kv<4, 2>(dqkv, dout, lse, delta, qkv, tokens, heads, kv_heads, d, accumulate);
}
extern "C" __global__ void __launch_bounds__(128) attention_bwd_kv_widest_bf16(
    bf16* __restrict__ dqkv, const bf16* __restrict__ dout, const f32* __restrict__ lse, const f32* __restrict__ delta,
    const bf16* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d, u32 accumulate) {
    attention_bwd_kv_mma<16, 8, 2, true>(dqkv, dout, lse, delta, qkv, tokens, heads, kv_heads, d, accumulate);
}
extern "C" __global__ void __launch_bounds__(128, 2) attention_bwd_kv_widest_f32(
    f32* __restrict__ dqkv, const f32* __restrict__ dout, const f32* __restrict__ lse, const f32* __restrict__ delta,
    const f32* __restrict__ qkv, u32 tokens, u32 heads, u32 kv_heads, u32 d, u32 accumulate) {
    attention_bwd_kv<8, 2>(dqkv, dout, lse, delta, qkv, tokens, heads, kv_heads, d, accumulate);
}
