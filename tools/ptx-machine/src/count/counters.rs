//! Named sums of what a launch or a line of it did.

use super::{Accessed, Issued};
use crate::ir::op::Kind;
use crate::ir::{Class, Cost};

macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// Counts by name. What each means stands in [`super`].
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $(pub $name: u64,)*
        }

        impl Counters {
            /// Names and counts, in a fixed order.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }
        }

        impl std::ops::AddAssign for Counters {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

counters! {
    warp_instructions,
    thread_instructions,
    integer,
    float,
    conversion,
    special,
    mma,
    load_matrix,
    shuffle,
    global_load,
    global_store,
    shared_load,
    shared_store,
    local_access,
    async_copy,
    atomic,
    barrier,
    branch,
    other,
    mma_flops,
    tf32_flops,
    float_flops,
    global_requests,
    global_sectors,
    global_sectors_least,
    global_load_sectors,
    global_store_sectors,
    shared_requests,
    shared_wavefronts,
    shared_wavefronts_least,
    local_bytes,
    atomics,
    barrier_waits,
}

impl Counters {
    /// The sum over the executions of one operation.
    pub fn of(cost: Cost, kind: Kind, issued: &Issued, accessed: &Accessed) -> Self {
        let mut all = Self::default();
        let Issued { issues, lanes, skipped } = *issued;
        let acting = issues - skipped;
        let slot = match cost.class {
            Class::Part => return all,
            Class::Integer => &mut all.integer,
            Class::Float => &mut all.float,
            Class::Conversion => &mut all.conversion,
            Class::Special => &mut all.special,
            Class::Mma => &mut all.mma,
            Class::LoadMatrix => &mut all.load_matrix,
            Class::Shuffle => &mut all.shuffle,
            Class::GlobalLoad => &mut all.global_load,
            Class::GlobalStore => &mut all.global_store,
            Class::SharedLoad => &mut all.shared_load,
            Class::SharedStore => &mut all.shared_store,
            Class::Local => &mut all.local_access,
            Class::AsyncCopy => &mut all.async_copy,
            Class::Atomic => &mut all.atomic,
            Class::Barrier => &mut all.barrier,
            Class::Branch => &mut all.branch,
            Class::Other => &mut all.other,
        };
        *slot = issues;
        (all.warp_instructions, all.thread_instructions) = (issues, lanes);
        all.mma_flops = acting * u64::from(cost.mma_flops);
        all.tf32_flops = acting * u64::from(cost.tf32_flops);
        all.float_flops = lanes * u64::from(cost.float_flops);
        all.global_requests = accessed.global_requests;
        all.global_sectors = accessed.global_sectors;
        all.global_sectors_least = accessed.global_sectors_least;
        all.shared_requests = accessed.shared_requests;
        all.shared_wavefronts = accessed.shared_wavefronts;
        all.shared_wavefronts_least = accessed.shared_wavefronts_least;
        all.local_bytes = accessed.local_bytes;
        match kind {
            Kind::Load(_) | Kind::AsyncCopy { .. } => all.global_load_sectors = accessed.global_sectors,
            Kind::Store(_) => all.global_store_sectors = accessed.global_sectors,
            Kind::Atomic(..) => all.atomics = lanes,
            Kind::Barrier { arrive: false, .. } => all.barrier_waits = acting,
            _ => {}
        }
        all
    }
}
