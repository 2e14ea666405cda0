//! Measures candle on the engine's own task on the CPU, in f32: a training step of `dit-cifar10` (forward, mean squared
//! error, backward, AdamW) and a DDIM step without guidance.
//!
//!     cargo run --release --manifest-path tools/peers/candle/Cargo.toml -- --batch 32 --threads 2
//!
//! The step lacks what candle has no call for and the engine's has: gathering, drawing noise, clipping and the moving
//! average of the weights. Prints one JSON line with the keys of the other peers. Peak memory is the process's largest
//! resident set up to the end of the training steps.

use std::time::Instant;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{AdamW, Embedding, Linear, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap};
use clap::Parser;

const SIZE: usize = 32;
const CHANNELS: usize = 3;
const PATCH: usize = 4;
const SIDE: usize = SIZE / PATCH;
const PATCHES: usize = SIDE * SIDE;
const PATCH_DIM: usize = PATCH * PATCH * CHANNELS;
const HIDDEN: usize = 384;
const DEPTH: usize = 12;
const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const HEAD: usize = HIDDEN / HEADS;
const TIME: usize = 128;
const CONDITION: usize = 400;
const LABELS: usize = 11;
const EPSILON: f64 = 1e-5;
const DDIM_BATCH: usize = 32;

#[derive(Parser)]
struct Arguments {
    /// Only dit-cifar10 is written down here.
    #[arg(long, default_value = "dit-cifar10", value_parser = ["dit-cifar10"])]
    model: String,
    #[arg(long, default_value_t = 32)]
    batch: usize,
    #[arg(long, default_value = "cpu", value_parser = ["cpu"])]
    device: String,
    #[arg(long, default_value = "f32", value_parser = ["f32"])]
    dtype: String,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    #[arg(long, default_value_t = 7)]
    repeat: usize,
}

/// Layer norm of plain ops: candle's fused one has no backward.
struct Norm {
    weight: Tensor,
    bias: Tensor,
}

impl Norm {
    fn new(builder: VarBuilder) -> Result<Self> {
        let weight = builder.get_with_hints(HIDDEN, "weight", candle_nn::Init::Const(1.0))?;
        Ok(Self { weight, bias: builder.get_with_hints(HIDDEN, "bias", candle_nn::Init::Const(0.0))? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
        let x = x.broadcast_div(&(variance + EPSILON)?.sqrt()?)?;
        x.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)
    }
}

struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

impl Mlp {
    fn new(inner: usize, hidden: usize, outer: usize, builder: VarBuilder) -> Result<Self> {
        let fc1 = candle_nn::linear(inner, hidden, builder.pp("fc1"))?;
        Ok(Self { fc1, fc2: candle_nn::linear(hidden, outer, builder.pp("fc2"))? })
    }

    fn forward(&self, x: &Tensor, activation: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        self.fc2.forward(&activation(&self.fc1.forward(x)?)?)
    }
}

struct Block {
    norm1: Norm,
    qkv: Linear,
    out: Linear,
    norm2: Norm,
    mlp: Mlp,
}

impl Block {
    fn new(builder: VarBuilder) -> Result<Self> {
        Ok(Self {
            norm1: Norm::new(builder.pp("norm1"))?,
            qkv: candle_nn::linear(HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD, builder.pp("attn.qkv"))?,
            out: candle_nn::linear(HIDDEN, HIDDEN, builder.pp("attn.out"))?,
            norm2: Norm::new(builder.pp("norm2"))?,
            mlp: Mlp::new(HIDDEN, 4 * HIDDEN, HIDDEN, builder.pp("mlp"))?,
        })
    }

    fn attend(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, tokens, _) = x.dims3()?;
        let qkv = self.qkv.forward(x)?.reshape((batch, tokens, HEADS + 2 * KV_HEADS, HEAD))?.transpose(1, 2)?;
        let group = HEADS / KV_HEADS;
        // The query heads of one key head side by side, so that keys and values need no copies.
        let q = qkv.narrow(1, 0, HEADS)?.contiguous()?.reshape((batch, KV_HEADS, group * tokens, HEAD))?;
        let k = qkv.narrow(1, HEADS, KV_HEADS)?.contiguous()?;
        let v = qkv.narrow(1, HEADS + KV_HEADS, KV_HEADS)?.contiguous()?;
        let scores = (q.matmul(&k.t()?)? / (HEAD as f64).sqrt())?;
        let mixed = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&v)?;
        let mixed = mixed.reshape((batch, HEADS, tokens, HEAD))?.transpose(1, 2)?.reshape((batch, tokens, HIDDEN))?;
        self.out.forward(&mixed)
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = (x + self.attend(&self.norm1.forward(x)?)?)?;
        &x + self.mlp.forward(&self.norm2.forward(&x)?, Tensor::gelu)?
    }
}

struct Dit {
    patch_embed: Linear,
    position: Tensor,
    time: Mlp,
    class_embedding: Embedding,
    class: Mlp,
    blocks: Vec<Block>,
    norm: Norm,
    linear: Linear,
    frequencies: Tensor,
}

impl Dit {
    fn new(builder: VarBuilder) -> Result<Self> {
        let half = TIME / 2;
        let frequencies: Vec<f32> = (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect();
        let normal = candle_nn::Init::Randn { mean: 0.0, stdev: 0.02 };
        Ok(Self {
            patch_embed: candle_nn::linear(PATCH_DIM, HIDDEN, builder.pp("patch_embed"))?,
            position: builder.get_with_hints((PATCHES + 1, HIDDEN), "position", normal)?,
            time: Mlp::new(TIME, CONDITION, HIDDEN, builder.pp("time"))?,
            class_embedding: candle_nn::embedding(LABELS, TIME, builder.pp("class.embedding"))?,
            class: Mlp::new(TIME, CONDITION, HIDDEN, builder.pp("class"))?,
            blocks: (0..DEPTH).map(|i| Block::new(builder.pp(format!("blocks.{i}")))).collect::<Result<_>>()?,
            norm: Norm::new(builder.pp("final.norm"))?,
            linear: candle_nn::linear(HIDDEN, PATCH_DIM, builder.pp("final.linear"))?,
            frequencies: Tensor::from_vec(frequencies, (1, half), builder.device())?,
        })
    }

    /// `x` `[B, H, W, C]`, `time` `[B]`, `labels` `[B]` u32.
    fn forward(&self, x: &Tensor, time: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let batch = x.dim(0)?;
        let angle = time.unsqueeze(1)?.broadcast_mul(&self.frequencies)?;
        let time = self.time.forward(&Tensor::cat(&[angle.cos()?, angle.sin()?], 1)?, Tensor::silu)?;
        let class = self.class.forward(&self.class_embedding.forward(labels)?, Tensor::silu)?;
        let condition = (time + class)?.unsqueeze(1)?;
        let patches = x
            .reshape((batch, SIDE, PATCH, SIDE, PATCH * CHANNELS))?
            .transpose(2, 3)?
            .reshape((batch, PATCHES, PATCH_DIM))?;
        let mut x = Tensor::cat(&[condition, self.patch_embed.forward(&patches)?], 1)?.broadcast_add(&self.position)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        let x = self.linear.forward(&self.norm.forward(&x.narrow(1, 1, PATCHES)?)?)?;
        x.reshape((batch, SIDE, SIDE, PATCH, PATCH * CHANNELS))?
            .transpose(2, 3)?
            .reshape((batch, SIZE, SIZE, CHANNELS))
    }
}

/// Seconds of `repeat` calls after `warmup`: the median and the least.
fn measure(arguments: &Arguments, mut step: impl FnMut() -> Result<()>) -> Result<(f64, f64)> {
    let mut times = Vec::new();
    for round in 0..arguments.warmup + arguments.repeat.max(1) {
        let start = Instant::now();
        step()?;
        if round >= arguments.warmup {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    Ok((times[times.len() / 2], times[0]))
}

fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok().map(|kib| kib / 1024.0)
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    // candle takes its number of threads from rayon's variable, once, on first use.
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", arguments.threads.to_string()) };
    let device = Device::Cpu;
    let parameters = VarMap::new();
    let model = Dit::new(VarBuilder::from_varmap(&parameters, DType::F32, &device))?;
    let count: usize = parameters.all_vars().iter().map(|var| var.elem_count()).sum();
    let options = ParamsAdamW { lr: 2e-4, weight_decay: 0.01, ..ParamsAdamW::default() };
    let mut optimizer = AdamW::new(parameters.all_vars(), options)?;

    let inputs = |batch: usize| -> Result<(Tensor, Tensor, Tensor)> {
        let x = Tensor::randn(0f32, 1.0, (batch, SIZE, SIZE, CHANNELS), &device)?;
        let time = (Tensor::rand(0f32, 1.0, batch, &device)? * 999.0)?;
        let labels: Vec<u32> = (0..batch as u32).map(|k| k % 10).collect();
        Ok((x, time, Tensor::from_vec(labels, batch, &device)?))
    };
    let (x, time, labels) = inputs(arguments.batch)?;
    let noise = x.randn_like(0.0, 1.0)?;
    let (step, step_min) = measure(&arguments, || {
        let loss = candle_nn::loss::mse(&model.forward(&x, &time, &labels)?, &noise)?;
        optimizer.backward_step(&loss)
    })?;
    let peak = peak_rss_mib();

    let (state, time, labels) = inputs(DDIM_BATCH)?;
    let (a, s, a_next, s_next) = (0.281f64, 0.960f64, 0.302f64, 0.953f64);
    let (ddim, ddim_min) = measure(&arguments, || {
        let eps = model.forward(&state, &time, &labels)?.detach();
        let x0 = ((&state - (eps * s)?)? / a)?.clamp(-1f32, 1f32)?;
        let eps = ((&state - (&x0 * a)?)? / s)?;
        ((x0 * a_next)? + (eps * s_next)?).map(drop)
    })?;
    let round = |value: f64| (value * 1000.0).round() / 1000.0;
    println!(
        "{}",
        serde_json::json!({
            "peer": "candle",
            "device": arguments.device,
            "threads": arguments.threads,
            "mode": "forward, backward, AdamW",
            "model": arguments.model,
            "parameters": count,
            "dtype": arguments.dtype,
            "batch": arguments.batch,
            "step_ms": round(1e3 * step),
            "step_min_ms": round(1e3 * step_min),
            "images_per_second": round(arguments.batch as f64 / step),
            "peak_mib": peak.map(round),
            "ddim_batch": DDIM_BATCH,
            "ddim_step_ms": round(1e3 * ddim),
            "ddim_step_min_ms": round(1e3 * ddim_min),
        })
    );
    Ok(())
}
