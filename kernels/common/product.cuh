// Products C[i, j] = sum over r of A[i, r] B[j, r] by tiles: f32 with plain FMA, bf16 on the tensor cores with f32 sums, and f32 there too
// where its factors may be rounded to TF32, which has f32's exponents and 10 bits of fraction.
//
// bf16: mma.sync m16n8k16 on tiles by 32 steps of r, four stages of cp.async. A tile is SmallTile (64x64, warps of 32x32),
// EightTile (64x64, eight warps of 32x16), TallTile (128x64, warps of 64x32), LargeTile (128x128, warps of 64x64) or WideTile (128x192,
// warps of 64x48): shared memory gives a fragment to as many mma as the warp is wide or high, and the second-level cache a row of A to
// as many columns as the tile is wide. EightTile loads half as many fragments again as SmallTile from shared memory, but its warps hide
// more of each other's latency: it is for grids of few blocks; TallTile loads three quarters, for long results of 64 columns
// (src/core/ops/tile.rs). All but the small one take only operands and results in
// pieces of 16 bytes (`wide`, by the launch); the small one finds out at the block's start. TF32 (Tf32<Tile>): the same tiles by 16 steps
// of r, so that a stage has the same bytes, and mma.sync m16n8k8; factors are rounded as fragments are loaded (to nearest, ties away from
// zero), a word each. f32: tiles of 128x128 or 64x64 by 16, 8x8 or 4x4 results a thread. Whatever the tile, an element is one chain over
// r in ascending order, so that the choice of tile changes no bit and a row's result depends on the sum's length alone. Beyond r's end
// come zeros, which change no sum; beyond the tile's rows and columns whatever is read again, for nobody stores those sums.
//
// Launches: ceil(i / ROWS) * ceil(j / COLS) blocks in x, j fastest (neighbours share rows of A in the L2); f32 256 threads;
// bf16 and TF32 32 threads a warp, dynamic shared memory 4 * 32 * (2 (ROWS + COLS) + 32) bytes: 36864 to 86016 by the tile's area.
//
// An operand is a matrix, stored or imagined, in which neighbours in a row lie side by side in memory. The sum runs along
// its rows (R_ALONG_ROW: r is the column) or down its columns (r is the row). A thread copies pieces of neighbouring
// columns, in each step DEPTH further along r. An operand O has
//
//   data, outer, wide   its memory, the size of the index that is not summed, whether pieces of 16 bytes are whole and aligned
//   O::DENSE            whether every element has a place
//   O::Walk<P>          where a thread's P pieces are
//   walk_from<S>(o, walk, first, r)                           the first step of the tile at outer index `first`, as S shares it
//   walk_columns<N>(o, walk), walk_rows<DEPTH>(o, walk)       further along (also N = 1), or down
//   walk_place(o, walk, p)                                    where the p-th piece lies; null: it is zero
//
// and what takes the sums has N, the neighbours that it takes together (4, or 2 where they are f32: a quad of lanes then fills
// sectors of 32 bytes), `wide`, Columns with columns_of(to, col, wide, columns), what all rows share, finish(to, columns, row, col,
// sums, wide), and SUMS: whether it may want the sum over r of A[i, r] too, which the blocks of the first column then make where
// `sums` is not null: finish_sum(to, row, sum).
#pragma once
#include "common/async.cuh"
#include "common/mma.cuh"
#include "common/types.cuh"
#include "common/wide.cuh"

// How THREADS threads share the pieces of N elements of a tile of SIDE outer indices by DEPTH steps of r.
template <u32 SIDE, u32 DEPTH_, u32 THREADS, u32 N_, bool R_ALONG_ROW_>
struct Share {
    static constexpr u32 DEPTH = DEPTH_, N = N_;
    static constexpr bool R_ALONG_ROW = R_ALONG_ROW_;
    static constexpr u32 ACROSS = (R_ALONG_ROW ? DEPTH : SIDE) / N;
    static constexpr u32 COUNT = SIDE * DEPTH / N / THREADS;
    // Whether a thread's pieces lie below each other.
    static constexpr bool ONE_COLUMN = THREADS % ACROSS == 0;
    static_assert(COUNT * N * THREADS == SIDE * DEPTH, "every thread has as many pieces");

    // Within the tile; the column in pieces.
    DEV u32 row(u32 p) {
        return ONE_COLUMN ? threadIdx.x / ACROSS + p * (THREADS / ACROSS) : (threadIdx.x + p * THREADS) / ACROSS;
    }
    DEV u32 piece(u32 p) { return (threadIdx.x + (ONE_COLUMN ? 0 : p * THREADS)) % ACROSS; }
};

// The p-th piece's place in the operand. Beyond the last outer index is the last one again.
template <typename S, typename O>
DEV u32 share_row(const O& operand, u32 first, u32 r, u32 p) {
    return S::R_ALONG_ROW ? min_of(first + S::row(p), operand.outer - 1) : r + S::row(p);
}
template <typename S, typename O>
DEV u32 share_col(const O& operand, u32 first, u32 r, u32 p) {
    if (S::R_ALONG_ROW) return r + S::piece(p) * S::N;
    u32 col = first + S::piece(p) * S::N;
    return operand.wide ? min_of(col, operand.outer - S::N) : col;
}
// Elements that are left of a piece in its row of the operand: none below the last row.
template <typename S, typename O>
DEV u32 share_left(const O& operand, u32 first, u32 r, u32 r_end, u32 p) {
    u32 rows = S::R_ALONG_ROW ? operand.outer : r_end, cols = S::R_ALONG_ROW ? r_end : operand.outer;
    u32 row = (S::R_ALONG_ROW ? first : r) + S::row(p), col = (S::R_ALONG_ROW ? r : first) + S::piece(p) * S::N;
    return row < rows && col < cols ? min_of(cols - col, S::N) : 0;
}

// A matrix as it is stored, `stride` elements from row to row.
template <typename T>
struct Stored {
    const T* data;
    u32 stride;
    u32 outer;
    bool wide;

    static constexpr bool DENSE = true;
    template <u32 P>
    struct Walk {
        const T* at[P];
    };

    DEV Stored make(const T* data, u32 stride, u32 outer) {
        return Stored{data, stride, outer, stride % Vec16<T>::COUNT == 0 && aligned16(data)};
    }
};
template <typename S, typename T, typename Walk>
DEV void walk_from(const Stored<T>& operand, Walk& walk, u32 first, u32 r) {
    UNROLL for (u32 p = 0; p < S::COUNT; p++)
        walk.at[p] = operand.data + (u64)share_row<S>(operand, first, r, p) * operand.stride + share_col<S>(operand, first, r, p);
}
template <u32 N, typename T, typename Walk>
DEV void walk_columns(const Stored<T>&, Walk& walk) {
    UNROLL for (auto& at : walk.at) at += N;
}
template <u32 DEPTH, typename T, typename Walk>
DEV void walk_rows(const Stored<T>& operand, Walk& walk) {
    u64 step = (u64)DEPTH * operand.stride;
    UNROLL for (auto& at : walk.at) at += step;
}
template <typename T, typename Walk>
DEV const T* walk_place(const Stored<T>&, const Walk& walk, u32 p) {
    return walk.at[p];
}

// One step of r further.
template <typename S, typename O, typename Walk>
DEV void share_next(const O& operand, Walk& walk) {
    if constexpr (S::R_ALONG_ROW) walk_columns<S::DEPTH>(operand, walk);
    else walk_rows<S::DEPTH>(operand, walk);
}

// --- f32: plain FMA, 256 threads ---

constexpr u32 FMA_DEPTH = 16;

template <u32 SIDE, bool R_ALONG_ROW>
using FmaShare = Share<SIDE, FMA_DEPTH, 256, 4, R_ALONG_ROW>;

// This thread's elements of a SIDE x FMA_DEPTH tile, read ahead of their use.
template <u32 SIDE, bool R_ALONG_ROW, typename O, typename Walk>
DEV void fma_read(f32 (&ahead)[SIDE / 64][4], const O& operand, Walk& walk, u32 first, u32 r, u32 r_end) {
    typedef FmaShare<SIDE, R_ALONG_ROW> S;
    UNROLL for (u32 p = 0; p < S::COUNT; p++) {
        u32 left = share_left<S>(operand, first, r, r_end, p);
        if (operand.wide && left >= 4) {
            const f32* from = walk_place(operand, walk, p);
            load_wide(from, 0, from != nullptr, ahead[p]);
        } else {
            Walk at = walk;
            UNROLL for (u32 i = 0; i < 4; i++) {
                const f32* from = i < left ? walk_place(operand, at, p) : nullptr;
                ahead[p][i] = from != nullptr ? *from : 0.0f;
                walk_columns<1>(operand, at);
            }
        }
    }
    share_next<S>(operand, walk);
}

template <u32 SIDE, bool R_ALONG_ROW>
DEV void fma_put(f32 (&tile)[FMA_DEPTH][SIDE + 4], const f32 (&ahead)[SIDE / 64][4]) {
    UNROLL for (u32 p = 0; p < SIDE / 64; p++) {
        u32 piece = p * 256 + threadIdx.x;
        if (R_ALONG_ROW) {
            UNROLL for (u32 i = 0; i < 4; i++) tile[piece % 4 * 4 + i][piece / 4] = ahead[p][i];
        } else {
            store_wide(&tile[piece / (SIDE / 4)][piece % (SIDE / 4) * 4], 4, true, ahead[p]);
        }
    }
}

template <u32 SIDE, bool A_R_ALONG_ROW, bool B_R_ALONG_ROW, typename A, typename B, typename To>
DEV void fma_product(const A& a, const B& b, u32 r, u32 r_end, const To& to) {
    SHARED(f32, fma_a, [FMA_DEPTH][SIDE + 4]);
    SHARED(f32, fma_b, [FMA_DEPTH][SIDE + 4]);
    constexpr u32 PARTS = SIDE / 64;
    u32 tiles = ceil_div(b.outer, SIDE), row0 = blockIdx.x / tiles * SIDE, col0 = blockIdx.x % tiles * SIDE;
    u32 x = threadIdx.x % 16 * 4, y = threadIdx.x / 16 * 4;
    typename A::template Walk<PARTS> a_walk;
    typename B::template Walk<PARTS> b_walk;
    walk_from<FmaShare<SIDE, A_R_ALONG_ROW>>(a, a_walk, row0, r);
    walk_from<FmaShare<SIDE, B_R_ALONG_ROW>>(b, b_walk, col0, r);
    f32 sums[PARTS * 4][PARTS][4], row_sums[PARTS * 4];
    UNROLL for (u32 i = 0; i < PARTS * 4; i++) {
        row_sums[i] = 0.0f;
        UNROLL for (u32 q = 0; q < PARTS; q++)
            UNROLL for (u32 j = 0; j < 4; j++) sums[i][q][j] = 0.0f;
    }

    f32 a_ahead[PARTS][4], b_ahead[PARTS][4];
    fma_read<SIDE, A_R_ALONG_ROW>(a_ahead, a, a_walk, row0, r, r_end);
    fma_read<SIDE, B_R_ALONG_ROW>(b_ahead, b, b_walk, col0, r, r_end);
    for (; r < r_end; r += FMA_DEPTH) {
        fma_put<SIDE, A_R_ALONG_ROW>(fma_a, a_ahead);
        fma_put<SIDE, B_R_ALONG_ROW>(fma_b, b_ahead);
        __syncthreads();
        if (r + FMA_DEPTH < r_end) {
            fma_read<SIDE, A_R_ALONG_ROW>(a_ahead, a, a_walk, row0, r + FMA_DEPTH, r_end);
            fma_read<SIDE, B_R_ALONG_ROW>(b_ahead, b, b_walk, col0, r + FMA_DEPTH, r_end);
        }
#pragma unroll 4
        for (u32 d = 0; d < FMA_DEPTH; d++) {
            f32 av[PARTS][4], bv[PARTS][4];
            UNROLL for (u32 q = 0; q < PARTS; q++) {
                load_wide(&fma_a[d][q * 64 + y], 4, true, av[q]);
                load_wide(&fma_b[d][q * 64 + x], 4, true, bv[q]);
            }
            UNROLL for (u32 i = 0; i < PARTS * 4; i++) {
                if constexpr (To::SUMS) row_sums[i] += av[i / 4][i % 4];
                UNROLL for (u32 q = 0; q < PARTS; q++)
                    UNROLL for (u32 j = 0; j < 4; j++) sums[i][q][j] = fma_f32(av[i / 4][i % 4], bv[q][j], sums[i][q][j]);
            }
        }
        __syncthreads();
    }
    if constexpr (To::SUMS) {
        UNROLL for (u32 i = 0; i < PARTS * 4; i++) {
            u32 row = row0 + i / 4 * 64 + y + i % 4;
            if (to.sums != nullptr && col0 == 0 && x == 0 && row < a.outer) finish_sum(to, row, row_sums[i]);
        }
    }
    typename To::Columns columns[PARTS];
    UNROLL for (u32 q = 0; q < PARTS; q++) {
        u32 col = col0 + q * 64 + x;
        if (col < b.outer) columns_of(to, col, to.wide, columns[q]);
    }
    UNROLL for (u32 i = 0; i < PARTS * 4; i++) {
        u32 row = row0 + i / 4 * 64 + y + i % 4;
        if (row >= a.outer) continue;
        UNROLL for (u32 q = 0; q < PARTS; q++) {
            u32 col = col0 + q * 64 + x;
            if (col < b.outer) finish(to, columns[q], row, col, sums[i][q], to.wide);
        }
    }
}

// --- bf16 and TF32: tensor cores ---

// Steps of r of a stage: 64 bytes. A half of it is an mma's.
template <typename T>
constexpr u32 MMA_DEPTH = 64 / sizeof(T);
constexpr u32 MMA_STAGES = 4;

// A tile of results and how warps share it: warps side by side take WARP_COLS columns each, those below each other WARP_ROWS rows.
template <u32 ROWS_, u32 COLS_, u32 WARP_ROWS_, u32 WARP_COLS_, u32 FMA_SIDE_, bool ANY_ = false>
struct MmaTile {
    static constexpr u32 ROWS = ROWS_, COLS = COLS_, WARP_ROWS = WARP_ROWS_, WARP_COLS = WARP_COLS_;
    // Whether operands and results may be other than whole pieces of 16 bytes.
    static constexpr bool ANY = ANY_;
    // Whether f32 is multiplied on the tensor cores.
    static constexpr bool TF32 = false;
    static constexpr u32 ACROSS = COLS / WARP_COLS, THREADS = ROWS / WARP_ROWS * ACROSS * WARP;
    // The counterpart in f32.
    static constexpr u32 FMA_SIDE = FMA_SIDE_;
};
typedef MmaTile<64, 64, 32, 32, 64, true> SmallTile;
typedef MmaTile<64, 64, 32, 16, 0> EightTile;
typedef MmaTile<128, 64, 64, 32, 0> TallTile;
typedef MmaTile<128, 128, 64, 64, 128> LargeTile;
typedef MmaTile<128, 192, 64, 48, 0> WideTile;

// The tile with factors of f32 rounded to TF32.
template <typename Tile>
struct Tf32 : Tile {
    static constexpr bool TF32 = true;
};
typedef Tf32<SmallTile> SmallTf32Tile;
typedef Tf32<EightTile> EightTf32Tile;
typedef Tf32<TallTile> TallTf32Tile;
typedef Tf32<LargeTile> LargeTf32Tile;
typedef Tf32<WideTile> WideTf32Tile;
template <typename Tile, typename T>
constexpr bool ON_TENSOR_CORES = Tile::TF32 || sizeof(T) < sizeof(f32);

// How an operand's SIDE outer indices by MMA_DEPTH steps of r lie in a stage, in bytes, and which of its columns or rows a lane's
// fragments come from.
//
// r along the row: rows of 64 bytes, so that two share the 32 banks; the four pieces of 16 bytes change places by the row, so
// that the eight rows of an ldmatrix fall into different banks. As B, a group of 16 columns is dealt out so that the sums of a
// lane are four neighbours of a row: columns 4t, 4t + 1 are in the group's first n8 block, 4t + 2 and 4t + 3 in its second.
// r down the column: a row's pieces are followed by one that is left free, so that eight rows fall into different banks. In TF32, of which
// no instruction transposes, a lane loads single words of rows t and t + 4: there two pieces are left free, so that the four rows' eight
// neighbours do.
template <typename T, u32 SIDE, bool R_ALONG_ROW, bool IS_B>
struct MmaPlace {
    static constexpr bool WORDS = !R_ALONG_ROW && sizeof(T) == sizeof(f32);
    static constexpr u32 DEPTH = MMA_DEPTH<T>, ROW = R_ALONG_ROW ? 64 : (u32)sizeof(T) * SIDE + (WORDS ? 32 : 16);
    static constexpr u32 BYTES = ROW * (R_ALONG_ROW ? SIDE : DEPTH);
    // From fragments of 16 outer indices to the next 16, and from the first half of a step's r to its second.
    static constexpr u32 NEXT = 16 * (R_ALONG_ROW ? ROW : (u32)sizeof(T));
    static constexpr u32 DOWN = R_ALONG_ROW ? 0 : DEPTH / 2 * ROW;
    static constexpr u32 FLIP = R_ALONG_ROW ? 32 : 0;

    DEV u32 of_piece(u32 row, u32 piece) {
        return row * ROW + (R_ALONG_ROW ? piece ^ (row >> (IS_B ? 2 : 1) & 3) : piece) * 16;
    }
    // This lane's row address for the fragments at outer index `outer` (a multiple of 16): of A in the order of an m16k16
    // fragment, of B two n8k16 fragments one after the other. In TF32 their bytes are those of m16k8 and n8k8.
    DEV u32 of_lane(u32 outer) {
        if (WORDS) return threadIdx.x % 4 * ROW + (outer + threadIdx.x % WARP / 4) * 4;
        u32 matrix = threadIdx.x % WARP / 8, row = threadIdx.x % 8;
        u32 o_half = IS_B ? matrix / 2 : matrix % 2, r_half = IS_B ? matrix % 2 : matrix / 2;
        if (!R_ALONG_ROW) return of_piece(r_half * 8 + row, outer / 8 + o_half);
        return of_piece(outer + (IS_B ? row / 2 * 4 + row % 2 + o_half * 2 : o_half * 8 + row), r_half);
    }
    // Four words of fragments as they are stored, i groups of 16 from a lane's address in the given half of the step.
    DEV void load_stored(u32 (&words)[4], SharedAddress lane, u32 i, u32 half) {
        SharedAddress at = (half == 0 ? lane : shared_xor(lane, FLIP) + DOWN) + i * NEXT;
        if (WORDS) {
            UNROLL for (u32 w = 0; w < 4; w++) {
                u32 o_half = IS_B ? w / 2 : w % 2, r_half = IS_B ? w % 2 : w / 2;
                words[w] = load_shared(at + (r_half * 4 * ROW + o_half * 32));
            }
        } else if (R_ALONG_ROW) {
            ldmatrix_x4(words, at);
        } else {
            ldmatrix_x4_trans(words, at);
        }
    }
    // As they are multiplied.
    DEV void load(u32 (&words)[4], SharedAddress lane, u32 i, u32 half) {
        load_stored(words, lane, i, half);
        if constexpr (sizeof(T) == sizeof(f32)) {
            UNROLL for (u32 w = 0; w < 4; w++) words[w] = tf32_bits(f32_from_bits(words[w]));
        }
    }
};

// Starts to copy whole pieces of an operand's next step.
template <typename S, typename Place, typename O, typename Walk>
DEV void mma_copy(SharedAddress stage, const O& operand, const Walk& walk) {
    UNROLL for (u32 p = 0; p < S::COUNT; p++) {
        SharedAddress to = stage + Place::of_piece(S::row(p), S::piece(p));
        const auto* from = walk_place(operand, walk, p);
        if constexpr (O::DENSE) async_copy16(to, from);
        else async_copy16_zero_fill(to, from != nullptr ? from : operand.data, from != nullptr ? 16 : 0);
    }
}

// For a step that r's end cuts, or (not WIDE) for an operand that may have no whole pieces: zeros beyond it.
template <typename S, typename Place, bool WIDE, typename O, typename Walk>
DEV void mma_copy_part(u8* stage, const O& operand, const Walk& walk, u32 first, u32 r, u32 r_end) {
    constexpr u32 SIZE = sizeof(*operand.data), OF_WORD = 4 / SIZE;
    UNROLL for (u32 p = 0; p < S::COUNT; p++) {
        u32 left = share_left<S>(operand, first, r, r_end, p);
        u8* to = stage + Place::of_piece(S::row(p), S::piece(p));
        if (WIDE || operand.wide) {
            const auto* from = left > 0 ? walk_place(operand, walk, p) : nullptr;
            async_copy16_zero_fill(to, from != nullptr ? from : operand.data, from != nullptr ? left * SIZE : 0);
        } else {
            Walk at = walk;
#pragma unroll 1
            for (u32 i = 0; i < S::N; i += OF_WORD) {
                u32 word = 0;
                UNROLL for (u32 e = 0; e < OF_WORD; e++) {
                    const auto* from = i + e < left ? walk_place(operand, at, p) : nullptr;
                    walk_columns<1>(operand, at);
                    if (from != nullptr) word |= storage_bits(*from) << (16 * e);
                }
                *reinterpret_cast<u32*>(to + i * SIZE) = word;
            }
        }
    }
}

// The operands' stages and walks of one block.
template <typename T, typename Tile, bool A_R_ALONG_ROW, bool B_R_ALONG_ROW, bool WIDE, typename A, typename B>
struct MmaOperands {
    static constexpr u32 DEPTH = MMA_DEPTH<T>;
    typedef Share<Tile::ROWS, DEPTH, Tile::THREADS, Vec16<T>::COUNT, A_R_ALONG_ROW> ShareA;
    typedef Share<Tile::COLS, DEPTH, Tile::THREADS, Vec16<T>::COUNT, B_R_ALONG_ROW> ShareB;
    typedef MmaPlace<T, Tile::ROWS, A_R_ALONG_ROW, false> PlaceA;
    typedef MmaPlace<T, Tile::COLS, B_R_ALONG_ROW, true> PlaceB;
    static constexpr u32 STAGE = PlaceA::BYTES + PlaceB::BYTES;

    const A& a;
    const B& b;
    u32 row0, col0, r_end;
    u8* memory;
    typename A::template Walk<ShareA::COUNT> a_walk;
    typename B::template Walk<ShareB::COUNT> b_walk;

    // Starts the copies of a whole step into the stage at `offset`, and walks on.
    DEV void fill_whole(MmaOperands& own, u32 offset) {
        SharedAddress stage = shared_address(own.memory) + offset;
        mma_copy<ShareA, PlaceA>(stage, own.a, own.a_walk);
        mma_copy<ShareB, PlaceB>(stage + PlaceA::BYTES, own.b, own.b_walk);
        share_next<ShareA>(own.a, own.a_walk);
        share_next<ShareB>(own.b, own.b_walk);
        async_commit();
    }
    // For any step, also one behind the last.
    DEV void fill(MmaOperands& own, u32 offset, u32 r) {
        if (WIDE && r + DEPTH <= own.r_end) return fill_whole(own, offset);
        u8* stage = own.memory + offset;
        if (r < own.r_end) {
            mma_copy_part<ShareA, PlaceA, WIDE>(stage, own.a, own.a_walk, own.row0, r, own.r_end);
            mma_copy_part<ShareB, PlaceB, WIDE>(stage + PlaceA::BYTES, own.b, own.b_walk, own.col0, r, own.r_end);
        }
        share_next<ShareA>(own.a, own.a_walk);
        share_next<ShareB>(own.b, own.b_walk);
        async_commit();
    }
};

// c += A's rows, summed: products with ones. What TF32 leaves of a word is summed too, so that a bias's gradient is as exact as in f32 (and
// NaN where a factor is infinite, or rounded to it).
template <typename T>
DEV void mma_row_sums(f32 (&c)[4], const u32 (&stored)[4]) {
    if constexpr (sizeof(T) == sizeof(f32)) {
        const u32 ones[2] = {0x3f800000u, 0x3f800000u};
        u32 part[4];
        UNROLL for (u32 w = 0; w < 4; w++) part[w] = tf32_bits(f32_from_bits(stored[w]));
        mma_m16n8k8_tf32(c, part, ones);
        UNROLL for (u32 w = 0; w < 4; w++) part[w] = tf32_bits(f32_from_bits(stored[w]) - f32_from_bits(part[w]));
        mma_m16n8k8_tf32(c, part, ones);
    } else {
        const u32 ones[2] = {0x3f803f80u, 0x3f803f80u};
        mma_m16n8k16(c, stored, ones);
    }
}

// A warp's sums, and the products of one step. SUMMING: A's rows are summed too; the warps side by side share the row blocks of 16, as far
// as there are any.
template <typename T, typename Tile, typename PlaceA, typename PlaceB, bool SUMS>
struct MmaSums {
    static constexpr u32 BLOCKS = Tile::WARP_ROWS / 16, GROUPS = Tile::WARP_COLS / 16;
    static_assert(BLOCKS % Tile::ACROSS == 0 || Tile::ACROSS % BLOCKS == 0, "every row block is one warp's");
    static constexpr u32 SUM_BLOCKS = SUMS && BLOCKS > Tile::ACROSS ? BLOCKS / Tile::ACROSS : 1;

    f32 of[BLOCKS][2 * GROUPS][4];
    f32 of_rows[SUM_BLOCKS][4];

    DEV void clear(MmaSums& own) {
        UNROLL for (u32 i = 0; i < BLOCKS; i++)
            UNROLL for (u32 j = 0; j < 2 * GROUPS; j++)
                UNROLL for (u32 e = 0; e < 4; e++) own.of[i][j][e] = 0.0f;
        UNROLL for (u32 i = 0; i < SUM_BLOCKS; i++)
            UNROLL for (u32 e = 0; e < 4; e++) own.of_rows[i][e] = 0.0f;
    }
    DEV void add_rows(MmaSums& own, SharedAddress a_rows, u32 half) {
        if constexpr (SUMS) {
            UNROLL for (u32 i = 0; i < SUM_BLOCKS; i++) {
                u32 rows[4];
                PlaceA::load_stored(rows, a_rows, i, half);
                mma_row_sums<T>(own.of_rows[i], rows);
            }
        }
    }
    // The fragments lie at a lane's addresses `a` and `b` of a stage; A's of its own row blocks at `a_rows`.
    DEV void add(MmaSums& own, SharedAddress a, SharedAddress b, SharedAddress a_rows, bool summing) {
        UNROLL for (u32 half = 0; half < 2; half++) {
            // In TF32 first, while no other fragments take the registers that a word's two parts need.
            if (sizeof(T) == sizeof(f32) && summing) add_rows(own, a_rows, half);
            u32 af[BLOCKS][4];
            UNROLL for (u32 i = 0; i < BLOCKS; i++) PlaceA::load(af[i], a, i, half);
            UNROLL for (u32 j = 0; j < GROUPS; j++) {
                u32 bf[4];
                PlaceB::load(bf, b, j, half);
                const u32 first[2] = {bf[0], bf[1]}, second[2] = {bf[2], bf[3]};
                UNROLL for (u32 i = 0; i < BLOCKS; i++) {
                    mma_of<T>(own.of[i][2 * j], af[i], first);
                    mma_of<T>(own.of[i][2 * j + 1], af[i], second);
                }
            }
            if (sizeof(T) < sizeof(f32) && summing) add_rows(own, a_rows, half);
        }
    }
};

// Four neighbours of a row from a quad of lanes t that each hold the columns 2t, 2t + 1 of two blocks of eight, `first` and `second`:
// lane t gets the columns 4t to 4t + 3 of the sixteen.
DEV void mma_neighbours(f32 (&v)[4], const f32 (&first)[2], const f32 (&second)[2]) {
    u32 t = threadIdx.x % 4;
    bool upper = t >= 2, odd = t % 2 != 0;
    f32 low[2], high[2];
    UNROLL for (u32 e = 0; e < 2; e++) {
        // Of the own block, lane t has one pair and the lane two further the other.
        f32 own = upper ? second[e] : first[e];
        f32 got = __shfl_xor_sync(FULL_MASK, upper ? first[e] : second[e], 2);
        low[e] = upper ? got : own;
        high[e] = upper ? own : got;
        // Low has the pair t % 2 of the block, high the pair t % 2 + 2; they should be 2 (t % 2) and the next.
        f32 next = __shfl_xor_sync(FULL_MASK, odd ? low[e] : high[e], 1);
        v[e] = odd ? next : low[e];
        v[2 + e] = odd ? high[e] : next;
    }
}

template <bool B_R_ALONG_ROW, bool WHOLE, u32 BLOCKS, u32 COLUMNS, typename To>
DEV void mma_finish(const f32 (&sums)[BLOCKS][COLUMNS][4], u32 row0, u32 col0, u32 rows, u32 cols, const To& to) {
    u32 t = threadIdx.x % 4;
    row0 += threadIdx.x % WARP / 4;
    bool wide = WHOLE || to.wide;
    UNROLL for (u32 j = 0; j < COLUMNS; j += 2) {
        u32 col = col0 + j * 8 + To::N * t;
        typename To::Columns columns;
        if (col < cols) columns_of(to, col, wide, columns);
        UNROLL for (u32 i = 0; i < 2 * BLOCKS; i++) {
            u32 row = row0 + i * 8;
            const f32 first[2] = {sums[i / 2][j][i % 2 * 2], sums[i / 2][j][i % 2 * 2 + 1]};
            const f32 second[2] = {sums[i / 2][j + 1][i % 2 * 2], sums[i / 2][j + 1][i % 2 * 2 + 1]};
            if constexpr (To::N == 2) {
                static_assert(!B_R_ALONG_ROW, "a group's columns are dealt out for four neighbours");
                f32 v[2] = {first[0], first[1]}, w[2] = {second[0], second[1]};
                if (row < rows && col < cols) finish(to, columns, row, col, v, wide);
                if (row < rows && col + 8 < cols) finish(to, columns, row, col + 8, w, wide);
            } else {
                f32 v[4] = {first[0], first[1], second[0], second[1]};
                if constexpr (!B_R_ALONG_ROW) mma_neighbours(v, first, second);
                if (row < rows && col < cols) finish(to, columns, row, col, v, wide);
            }
        }
    }
}

// The oldest copy has landed, and behind the barrier everybody is done with the stage that is filled next.
DEV void mma_wait() {
    async_wait<MMA_STAGES - 2>();
    __syncthreads();
}

template <typename T, typename Tile, bool A_R_ALONG_ROW, bool B_R_ALONG_ROW, bool WIDE, typename A, typename B, typename To>
DEV void mma_tile(const A& a, const B& b, u32 r, u32 r_end, const To& to) {
    SMEM_DYN(memory);
    typedef MmaOperands<T, Tile, A_R_ALONG_ROW, B_R_ALONG_ROW, WIDE, A, B> Operands;
    typedef typename Operands::PlaceA PlaceA;
    typedef typename Operands::PlaceB PlaceB;
    typedef MmaSums<T, Tile, PlaceA, PlaceB, To::SUMS> Sums;
    constexpr u32 STAGE = Operands::STAGE, LAST = (MMA_STAGES - 1) * STAGE, DEPTH = Operands::DEPTH;
    u32 tiles = ceil_div(b.outer, Tile::COLS), row0 = blockIdx.x / tiles * Tile::ROWS, col0 = blockIdx.x % tiles * Tile::COLS;
    u32 warp = threadIdx.x / WARP, warp_row = warp / Tile::ACROSS * Tile::WARP_ROWS;
    u32 warp_col = warp % Tile::ACROSS * Tile::WARP_COLS, sum_row = warp_row + warp % Tile::ACROSS * Sums::SUM_BLOCKS * 16;
    Operands own = {a, b, row0, col0, r_end, memory, {}, {}};
    walk_from<typename Operands::ShareA>(a, own.a_walk, row0, r);
    walk_from<typename Operands::ShareB>(b, own.b_walk, col0, r);
    SharedAddress a_lane = shared_address(memory) + PlaceA::of_lane(warp_row);
    SharedAddress b_lane = shared_address(memory) + PlaceA::BYTES + PlaceB::of_lane(warp_col);
    SharedAddress rows_lane = shared_address(memory) + PlaceA::of_lane(sum_row);
    bool summing = false;
    if constexpr (To::SUMS) summing = to.sums != nullptr && col0 == 0 && warp % Tile::ACROSS < Sums::BLOCKS;
    Sums sums;
    Sums::clear(sums);

    // `at` is the step that is copied next, three ahead of the one that is multiplied.
    u32 at = r, reading = 0, filling = LAST;
#pragma unroll 1
    for (u32 s = 0; s < LAST; s += STAGE, at += DEPTH) Operands::fill(own, s, at);
    if (WIDE) {
#pragma unroll 1
        for (; at + DEPTH <= r_end; at += DEPTH) {
            mma_wait();
            Operands::fill_whole(own, filling);
            Sums::add(sums, a_lane + reading, b_lane + reading, rows_lane + reading, summing);
            filling = reading;
            reading = reading == LAST ? 0 : reading + STAGE;
        }
    }
#pragma unroll 1
    for (; at - (MMA_STAGES - 1) * DEPTH < r_end; at += DEPTH) {
        mma_wait();
        Operands::fill(own, filling, at);
        Sums::add(sums, a_lane + reading, b_lane + reading, rows_lane + reading, summing);
        filling = reading;
        reading = reading == LAST ? 0 : reading + STAGE;
    }
    async_wait<0>();
    if constexpr (To::SUMS) {
        if (summing && threadIdx.x % 4 == 0) {
            UNROLL for (u32 e = 0; e < 2 * Sums::SUM_BLOCKS; e++) {
                u32 row = row0 + sum_row + e * 8 + threadIdx.x % WARP / 4;
                if (row < a.outer) finish_sum(to, row, sums.of_rows[e / 2][e % 2 * 2]);
            }
        }
    }
    mma_finish<B_R_ALONG_ROW, !Tile::ANY>(sums.of, row0 + warp_row, col0 + warp_col, a.outer, b.outer, to);
}

// Neighbouring f32 sums of a weight's gradient that are taken together.
template <typename Tile, typename T>
constexpr u32 WEIGHT_NEIGHBOURS = ON_TENSOR_CORES<Tile, T> ? 2 : 4;

// The one for the tile and the operands' type. Tiles that do not take any operands are launched where all pieces are whole.
template <typename Tile, bool A_R_ALONG_ROW, bool B_R_ALONG_ROW, typename T, typename A, typename B, typename To>
DEV void product_of(const T*, const A& a, const B& b, u32 r, u32 r_end, const To& to) {
    if constexpr (!ON_TENSOR_CORES<Tile, T>) {
        fma_product<Tile::FMA_SIDE, A_R_ALONG_ROW, B_R_ALONG_ROW>(a, b, r, r_end, to);
    } else if constexpr (!Tile::ANY) {
        mma_tile<T, Tile, A_R_ALONG_ROW, B_R_ALONG_ROW, true>(a, b, r, r_end, to);
    } else if (a.wide && b.wide) {
        mma_tile<T, Tile, A_R_ALONG_ROW, B_R_ALONG_ROW, true>(a, b, r, r_end, to);
    } else {
        mma_tile<T, Tile, A_R_ALONG_ROW, B_R_ALONG_ROW, false>(a, b, r, r_end, to);
    }
}
template <typename Tile, bool A_R_ALONG_ROW, bool B_R_ALONG_ROW, typename A, typename B, typename To>
DEV void product(const A& a, const B& b, u32 r, u32 r_end, const To& to) {
    product_of<Tile, A_R_ALONG_ROW, B_R_ALONG_ROW>(a.data, a, b, r, r_end, to);
}
