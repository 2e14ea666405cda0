//! Scaling over several GPUs by an α-β model: a message of n bytes takes α + n / β (Hockney 1994).
//!
//! A ring (Patarasuk and Yuan 2009) sums the gradients in 2 (N − 1) hops, where each GPU sends 2 (N − 1) / N times their bytes; a
//! double tree (Sanders, Speck and Träff 2009) takes 2 log₂ N hops and sends them twice. The faster one counts. Latencies are
//! those of NCCL 2.27's own cost model (`src/graph/tuning.cc`, protocol Simple): 8.4 µs per call, and per hop 3.4 µs over NVLink,
//! 5.7 µs over PCIe, 14 µs over a network. Nothing is measured here.

use super::buckets;

/// The link between the GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// NVLink 4 between the 8 GPUs of a machine, a 400 Gb/s adapter a GPU between machines.
    Nvlink,
    /// PCIe 4.0 x16 between the 8 GPUs of a machine, one 100 Gb/s Ethernet between machines.
    Pcie,
    /// 100 Gb/s Ethernet between machines of one GPU.
    Ethernet,
}

/// GPUs of a machine, except for [`Link::Ethernet`].
const GPUS: usize = 8;

/// Seconds of a call.
const CALL: f64 = 8.4e-6;
/// Seconds of a hop over a network.
const NETWORK: f64 = 14e-6;

impl Link {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Nvlink, Self::Pcie, Self::Ethernet];

    /// The name on the command line.
    pub fn key(self) -> &'static str {
        match self {
            Self::Nvlink => "nvlink",
            Self::Pcie => "pcie",
            Self::Ethernet => "100gbe",
        }
    }

    /// Its description, with the source of its rate.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Nvlink => {
                "8 GPUs a machine by NVLink 4, 450 GB/s each way (NVIDIA H100 data sheet: 900 both ways); machines by a 400 Gb/s \
                 adapter a GPU (DGX H100 data sheet)"
            }
            Self::Pcie => {
                "8 GPUs a machine by PCIe 4.0 x16, 31.5 GB/s each way (16 GT/s a lane, 128b/130b); machines by one 100 Gb/s \
                 Ethernet"
            }
            Self::Ethernet => "machines of one GPU by 100 Gb/s Ethernet, 12.5 GB/s each way",
        }
    }

    /// GPUs of a machine.
    fn machine(self) -> usize {
        if self == Self::Ethernet { 1 } else { GPUS }
    }

    /// Bytes per second through the narrowest link of a ring over `gpus`, and seconds per hop within a machine.
    fn rates(self, gpus: usize) -> (f64, f64) {
        let many = gpus > self.machine();
        match self {
            // Each GPU's adapter carries its part.
            Self::Nvlink => (if many { 50e9 * GPUS as f64 } else { 450e9 }, 3.4e-6),
            Self::Pcie => (if many { 12.5e9 } else { 31.5e9 }, 5.7e-6),
            Self::Ethernet => (12.5e9, NETWORK),
        }
    }

    /// Seconds in which `gpus` GPUs sum `bytes` each.
    pub fn all_reduce(self, gpus: usize, bytes: f64) -> f64 {
        if gpus < 2 {
            return 0.0;
        }
        let (rate, near) = self.rates(gpus);
        let machines = gpus.div_ceil(self.machine()) as f64;
        let (n, within) = (gpus as f64, gpus.min(self.machine()) as f64);
        let far = if machines > 1.0 { 2.0 * machines } else { 0.0 };
        let hops = 2.0 * (n - 1.0);
        let ring = CALL + (hops - far).max(0.0) * near + far.min(hops) * NETWORK + hops / n * bytes / rate;
        let depth = 2.0 * ((within - 1.0) * near + machines.log2().ceil() * NETWORK);
        let tree = CALL + depth + 2.0 * bytes / rate;
        ring.min(tree)
    }

    /// Seconds in which each of `gpus` GPUs receives the `bytes` of all others: needed by `training.shards`, whose order is fixed.
    pub fn all_gather(self, gpus: usize, bytes: f64) -> f64 {
        if gpus < 2 {
            return 0.0;
        }
        let (rate, near) = self.rates(gpus);
        let machines = gpus.div_ceil(self.machine()) as f64;
        let (hops, far) = ((gpus - 1) as f64, if machines > 1.0 { machines } else { 0.0 });
        CALL + (hops - far).max(0.0) * near + far.min(hops) * NETWORK + hops * bytes / rate
    }
}

/// A step on several GPUs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    /// Number of GPUs.
    pub gpus: usize,
    /// Seconds of the exchange.
    pub exchange: f64,
    /// Seconds of a step that exchanges after its backward pass.
    pub after: f64,
    /// Seconds of an actual step: its exchange overlaps the backward pass, except for the last bucket; with shards it comes afterwards.
    pub taken: f64,
}

/// Share of a step spent in the backward pass: twice the forward's products.
const BACKWARD: f64 = 2.0 / 3.0;

impl Scaling {
    /// For steps that take `compute` seconds on one GPU, with `bytes` of gradients; each GPU runs such a step.
    pub fn new(link: Link, gpus: usize, compute: f64, bytes: f64, shards: bool) -> Self {
        let one = |bytes| if shards { link.all_gather(gpus, bytes) } else { link.all_reduce(gpus, bytes) };
        let exchange = one(bytes);
        // All buckets but the last overlap the backward pass; each has its own latency.
        let buckets = (bytes / buckets::LEAST as f64).floor().clamp(1.0, buckets::MOST as f64);
        let bucket = one(bytes / buckets);
        let shown = (buckets * bucket - BACKWARD * compute * (1.0 - 1.0 / buckets)).max(bucket);
        let shown = if shards || gpus < 2 { exchange } else { shown.min(exchange) };
        Self { gpus, exchange, after: compute + exchange, taken: compute + shown }
    }

    /// The share of time in which the GPUs compute.
    pub fn efficiency(&self) -> f64 {
        (self.after - self.exchange) / self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_messages_cost_latency_and_large_ones_bandwidth() {
        // 76 MB of f32 gradients by NVLink on 8 GPUs: 2 · 7/8 · 76.4 MB / 450 GB/s and 14 hops.
        let seconds = Link::Nvlink.all_reduce(8, 76.4e6);
        assert!((seconds - (8.4e-6 + 14.0 * 3.4e-6 + 1.75 * 76.4e6 / 450e9)).abs() < 1e-12);
        let ethernet = Link::Ethernet.all_reduce(2, 76.4e6);
        assert!((ethernet - (8.4e-6 + 2.0 * 14e-6 + 76.4e6 / 12.5e9)).abs() < 1e-9);
        // A ring of 1,024 would take 2,046 hops: the tree wins.
        assert!(Link::Nvlink.all_reduce(1024, 1e6) < 1e-3);
        for link in Link::ALL {
            let mut last = 0.0;
            for gpus in [1, 2, 4, 8, 16, 64, 1024] {
                let seconds = link.all_reduce(gpus, 76.4e6);
                assert!(seconds >= last, "{link:?} {gpus}");
                last = seconds;
                assert!(gpus < 4 || link.all_gather(gpus, 76.4e6) > seconds, "{link:?} {gpus}");
            }
        }
    }

    #[test]
    fn an_exchange_beside_the_backward_is_never_slower_and_hides_at_most_all() {
        for gpus in [1, 2, 8, 64, 1024] {
            let step = Scaling::new(Link::Pcie, gpus, 20e-3, 76.4e6, false);
            assert!(step.taken <= step.after && step.taken >= 20e-3, "{step:?}");
            assert!((0.0..=1.0).contains(&step.efficiency()));
        }
        let sharded = Scaling::new(Link::Pcie, 8, 20e-3, 76.4e6, true);
        assert_eq!(sharded.taken, sharded.after);
        assert_eq!(Scaling::new(Link::Pcie, 1, 20e-3, 76.4e6, false).after, 20e-3);
    }
}
