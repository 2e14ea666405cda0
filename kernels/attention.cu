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
// Two forms. FMA for f32 (common/attention_fma.cuh): computed from shared memory, a warp owns R rows. Tensor cores for bf16, and for f32
// whose factors are rounded to TF32 (common/attention_mma.cuh, common/attention_keys.cuh): a warp owns 16 rows of the group's queries, of
// all its heads one after the other; P and dS are rounded before they are multiplied. In both, what streams past comes in tiles through
// shared memory, and the order of every sum depends on T, H, G and D alone: never on the batch.
//
// Floor: 4 B H T^2 D operations forward and 10 B H T^2 D backward at the FMA or tensor rate, 14 where two kernels make scores
// and dP each; qkv and out are read and written once each as long as a head's K and V stay in L2. For T = 65 and D = 48
// memory binds: 4 (H + G) D T bytes a sample forward, (6 H + 8 G) D T backward.
//
// D <= 256: the entries _narrow are for D <= 64, _wide for up to 128, _widest for more. On tensor cores _bwd_whole is all of the
// backward where D <= 64 (in bf16 _slim: D <= 48) and T <= 72: a block has all keys of a group. Else _bwd_q writes dQ and delta [B, H, T],
// which _bwd_kv reads.
//
// FMA: grid B H ceil(T / rows of a block) for _fwd and _bwd_q, B G ceil(T / rows of a block) for _bwd_kv, blocks of 128 threads,
// 4 R rows each: R = 8 if narrow, else 4 (_fwd) or 2 (_bwd_*). With d4 = D rounded up to 4 and
// k4 = 4 (d4 / 4 | 1) (rows apart by an odd number of 16 bytes: no bank conflicts), dynamic shared memory in floats: _fwd
// 4 R (d4 + 32) + 32 (k4 + d4), _bwd_q 4 R (2 d4 + 32) + 64 k4, _bwd_kv 4 R (2 d4 + 64) + 64 k4. Of _wide and _widest
// that leaves room for few blocks, so that these may have more registers than the compiler would give them (second launch bound).
//
// Tensor cores: with n = ceil(H / G T / 16) tiles of queries, d8 = D rounded up to 16, plus 8, and k keys of a tile (as few tiles
// as `most` keys allow, alike, rounded up to 8; k16: to 16), dynamic shared memory in bf16, or in f32 with 4 for each 8 that is added:
//
//   _fwd       most = 72 if narrow, else 32; w warps: n spread evenly over p blocks of at most 4; grid B G by min(p, ceil(512 / (B G))),
//              whose blocks take several tiles of queries a warp. Where T > most: p in y, of 8 warps if narrow and if n rounded
//              up to 8 and to 4 are the same. d8 (16 w + 2 k16)
//   _bwd_q     most = 64 if narrow, else 32; w and p as where T > most; grid B G p; d8 (32 w + 2 k16)
//   _bwd_kv    grid B G ceil(T / k), most = 72 if narrow, else 32; with s = ceil(D / 16), w = 2 s if narrow (s rounded up to a power
//              of two), 2 ceil(s / 2) if wide, 2 ceil(s / 4) if widest; r = 16 min(w, 4) (widest: 16 min(w, 2)) queries at
//              a time; 2 d8 (k16 + r) + 2 r (k16 + 8)
//   _bwd_whole the same with ceil(T / k) = 1, _slim r = 16 w, and max(k16, D rounded up to 16) in the place of the last k16
//
// TF32, whose rows are twice as long: most = 16 if widest, w at most 4 for _bwd_q (2 if widest), r = 32 always (16 if widest).
#include "common/attention_fma.cuh"
#include "common/attention_keys.cuh"
#include "common/attention_mma.cuh"
#include "common/entry.cuh"
#include "common/types.cuh"

#define SIZES u32 tokens, u32 heads, u32 kv_heads, u32 d
#define FWD (Out<T> out, Out<f32> lse, In<T> qkv, SIZES)
#define FWD_NAMES (out, lse, qkv, tokens, heads, kv_heads, d)
ENTRY(attention_fwd_narrow_bf16, (256, 2), bf16, FWD, attention_fwd_mma<T, 4, 9> FWD_NAMES)
ENTRY(attention_fwd_wide_bf16, (128, 3), bf16, FWD, attention_fwd_mma<T, 8, 4> FWD_NAMES)
ENTRY(attention_fwd_widest_bf16, (128), bf16, FWD, attention_fwd_mma<T, 16, 4> FWD_NAMES)
ENTRY(attention_fwd_narrow_tf32, (256, 2), f32, FWD, attention_fwd_mma<T, 4, 9> FWD_NAMES)
ENTRY(attention_fwd_wide_tf32, (128, 3), f32, FWD, attention_fwd_mma<T, 8, 4> FWD_NAMES)
ENTRY(attention_fwd_widest_tf32, (128, 2), f32, FWD, attention_fwd_mma<T, 16, 2> FWD_NAMES)
ENTRY(attention_fwd_narrow_f32, (128), f32, FWD, attention_fwd<2, 8> FWD_NAMES)
ENTRY(attention_fwd_wide_f32, (128, 4), f32, FWD, attention_fwd<4, 4> FWD_NAMES)
ENTRY(attention_fwd_widest_f32, (128, 2), f32, FWD, attention_fwd<8, 4> FWD_NAMES)

#define BWD_Q (Out<T> dqkv, Out<f32> delta, In<T> dout, In<T> out, In<f32> lse, In<T> qkv, SIZES, u32 accumulate)
#define BWD_Q_NAMES (dqkv, delta, dout, out, lse, qkv, tokens, heads, kv_heads, d, accumulate)
ENTRY(attention_bwd_q_narrow_bf16, (256, 2), bf16, BWD_Q, attention_bwd_q_mma<T, 4, 4, false> BWD_Q_NAMES)
ENTRY(attention_bwd_q_wide_bf16, (128), bf16, BWD_Q, attention_bwd_q_mma<T, 8, 2, true> BWD_Q_NAMES)
ENTRY(attention_bwd_q_widest_bf16, (128), bf16, BWD_Q, attention_bwd_q_mma<T, 16, 2, true> BWD_Q_NAMES)
ENTRY(attention_bwd_q_narrow_tf32, (128, 3), f32, BWD_Q, attention_bwd_q_mma<T, 4, 4, true> BWD_Q_NAMES)
ENTRY(attention_bwd_q_wide_tf32, (128), f32, BWD_Q, attention_bwd_q_mma<T, 8, 2, true> BWD_Q_NAMES)
ENTRY(attention_bwd_q_widest_tf32, (128), f32, BWD_Q, attention_bwd_q_mma<T, 16, 1, true> BWD_Q_NAMES)
ENTRY(attention_bwd_q_narrow_f32, (128), f32, BWD_Q, attention_bwd_q<2, 8> BWD_Q_NAMES)
ENTRY(attention_bwd_q_wide_f32, (128, 4), f32, BWD_Q, attention_bwd_q<4, 2> BWD_Q_NAMES)
ENTRY(attention_bwd_q_widest_f32, (128, 2), f32, BWD_Q, attention_bwd_q<8, 2> BWD_Q_NAMES)

#define BWD_KV (Out<T> dqkv, In<T> dout, In<f32> lse, In<f32> delta, In<T> qkv, SIZES, u32 accumulate)
#define BWD_KV_NAMES (dqkv, dout, lse, delta, qkv, tokens, heads, kv_heads, d, accumulate)
#define BWD_KEYS_NAMES (dqkv, dout, nullptr, lse, delta, qkv, tokens, heads, kv_heads, d, accumulate)
ENTRY(attention_bwd_kv_narrow_bf16, (256, 2), bf16, BWD_KV, attention_bwd_keys_mma<T, 4, 9, 1, 4, false, false> BWD_KEYS_NAMES)
ENTRY(attention_bwd_kv_wide_bf16, (256, 2), bf16, BWD_KV, attention_bwd_keys_mma<T, 8, 4, 2, 4, true, false> BWD_KEYS_NAMES)
ENTRY(attention_bwd_kv_widest_bf16, (256), bf16, BWD_KV, attention_bwd_keys_mma<T, 16, 4, 4, 2, true, false> BWD_KEYS_NAMES)
ENTRY(attention_bwd_kv_narrow_tf32, (256, 2), f32, BWD_KV, attention_bwd_keys_mma<T, 4, 9, 1, 2, true, false> BWD_KEYS_NAMES)
ENTRY(attention_bwd_kv_wide_tf32, (256, 2), f32, BWD_KV, attention_bwd_keys_mma<T, 8, 4, 2, 2, true, false> BWD_KEYS_NAMES)
ENTRY(attention_bwd_kv_widest_tf32, (256), f32, BWD_KV, attention_bwd_keys_mma<T, 16, 2, 4, 1, true, false> BWD_KEYS_NAMES)
ENTRY(attention_bwd_kv_narrow_f32, (128), f32, BWD_KV, attention_bwd_kv<2, 8> BWD_KV_NAMES)
ENTRY(attention_bwd_kv_wide_f32, (128, 4), f32, BWD_KV, attention_bwd_kv<4, 2> BWD_KV_NAMES)
ENTRY(attention_bwd_kv_widest_f32, (128, 2), f32, BWD_KV, attention_bwd_kv<8, 2> BWD_KV_NAMES)

#define BWD_WHOLE (Out<T> dqkv, In<T> dout, In<T> out, In<f32> lse, In<T> qkv, SIZES, u32 accumulate)
#define BWD_WHOLE_NAMES (dqkv, dout, out, lse, nullptr, qkv, tokens, heads, kv_heads, d, accumulate)
ENTRY(attention_bwd_whole_slim_bf16, (256, 2), bf16, BWD_WHOLE, attention_bwd_keys_mma<T, 3, 9, 1, 8, false, true> BWD_WHOLE_NAMES)
ENTRY(attention_bwd_whole_narrow_bf16, (256, 2), bf16, BWD_WHOLE, attention_bwd_keys_mma<T, 4, 9, 1, 4, false, true> BWD_WHOLE_NAMES)
ENTRY(attention_bwd_whole_narrow_tf32, (256, 2), f32, BWD_WHOLE, attention_bwd_keys_mma<T, 4, 9, 1, 2, true, true> BWD_WHOLE_NAMES)
