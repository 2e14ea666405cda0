//! Control flow, barriers, and what a warp's lanes do together.

use super::{Decoded, Decoder, Kind, Space, Step, Width};
use crate::ir::op::{MmaType, Reduction, Shuffle, Vote};
use crate::parse::Operand;

impl Decoder<'_> {
    pub(super) fn warp(&mut self) -> Decoded {
        match self.base {
            "bra" => {
                self.takes("uni");
                self.expects(1)?;
                match self.operand(0)? {
                    Operand::Label(to) => Ok(Some(vec![Step::new(Kind::Branch(*to))])),
                    _ => Err("a label is expected".into()),
                }
            }
            "ret" | "exit" => {
                self.takes("uni");
                self.expects(0)?;
                Ok(Some(vec![Step::new(Kind::Exit)]))
            }
            "trap" => {
                self.expects(0)?;
                Ok(Some(vec![Step::new(Kind::Trap)]))
            }
            "bar" | "barrier" => self.barrier(),
            "shfl" => self.shuffle(),
            "vote" => self.vote(),
            "redux" => self.redux(),
            "match" => self.matching(),
            "activemask" => {
                if self.kind()? != "b32" {
                    return Err("not of this type".into());
                }
                self.expects(1)?;
                let mut step = Step::new(Kind::ActiveMask);
                step.destinations.push(self.destination(0, Width::B32)?);
                Ok(Some(vec![step]))
            }
            "ldmatrix" => self.load_matrix(),
            "mma" => self.mma(),
            "griddepcontrol" => self.grid_dependency(),
            _ => Ok(None),
        }
    }

    fn synchronised(&mut self) -> Result<(), super::Fault> {
        if self.takes("sync") { Ok(()) } else { Err("only the form with .sync is known".into()) }
    }

    /// Programmatic dependent launch (PTX ISA 7.8).
    fn grid_dependency(&mut self) -> Decoded {
        if self.module.target < 90 {
            return Err("needs .target sm_90 or newer".into());
        }
        self.expects(0)?;
        let kind = match self.takes_one(&["wait", "launch_dependents"]) {
            Some("wait") => Kind::GridWait,
            // That dependents may start changes nothing here: what they may touch is checked in any case.
            Some(_) => Kind::Nothing,
            None => return Err(".wait or .launch_dependents is expected".into()),
        };
        Ok(Some(vec![Step::new(kind)]))
    }

    fn barrier(&mut self) -> Decoded {
        if self.takes("warp") {
            self.synchronised()?;
            self.expects(1)?;
            let mut step = Step::new(Kind::WarpBarrier);
            step.sources.push(self.source(0, Width::B32)?);
            return Ok(Some(vec![step]));
        }
        self.takes("cta");
        let arrive = self.takes("arrive");
        if !arrive {
            self.synchronised()?;
        }
        // `bar` is aligned by itself.
        let aligned = self.takes("aligned") || self.base == "bar";
        let counted = match self.count() {
            1 if !arrive => false,
            2 => true,
            _ => return Err("a barrier, and for .arrive the number of threads, are expected".into()),
        };
        let mut step = Step::new(Kind::Barrier { counted, aligned, arrive });
        for index in 0..self.count() {
            step.sources.push(self.source(index, Width::B32)?);
        }
        Ok(Some(vec![step]))
    }

    fn shuffle(&mut self) -> Decoded {
        self.synchronised()?;
        let mode = match self.takes_one(&["up", "down", "bfly", "idx"]) {
            Some("up") => Shuffle::Up,
            Some("down") => Shuffle::Down,
            Some("bfly") => Shuffle::Butterfly,
            Some(_) => Shuffle::Index,
            None => return Err("a mode is needed".into()),
        };
        if self.kind()? != "b32" {
            return Err("only .b32 is known".into());
        }
        self.expects(5)?;
        let word = Width::B32;
        let (value, predicate) = match self.operand(0)? {
            Operand::Pair(value, predicate) if self.width_of(*predicate) == Width::Pred => {
                (self.destination_of(&Operand::Reg(*value), word)?, Some(*predicate))
            }
            other => (self.destination_of(other, word)?, None),
        };
        let mut step = Step::new(Kind::Shuffle { mode, with_predicate: predicate.is_some() });
        step.destinations.push(value);
        if predicate.is_some() {
            step.destinations.push(predicate);
        }
        for index in 1..5 {
            step.sources.push(self.source(index, word)?);
        }
        Ok(Some(vec![step]))
    }

    fn vote(&mut self) -> Decoded {
        self.synchronised()?;
        let kind = self.kind()?;
        let (mode, width) = match (self.takes_one(&["all", "any", "uni", "ballot"]), kind) {
            (Some("all"), "pred") => (Vote::All, Width::Pred),
            (Some("any"), "pred") => (Vote::Any, Width::Pred),
            (Some("uni"), "pred") => (Vote::Uniform, Width::Pred),
            (Some("ballot"), "b32") => (Vote::Ballot, Width::B32),
            _ => return Err("an unknown vote".into()),
        };
        self.expects(3)?;
        let (predicate, negated) = self.predicate(1)?;
        let mut step = Step::new(Kind::Vote { mode, negated });
        step.destinations.push(self.destination(0, width)?);
        step.sources = vec![predicate, self.source(2, Width::B32)?];
        Ok(Some(vec![step]))
    }

    fn redux(&mut self) -> Decoded {
        self.synchronised()?;
        let kind = self.kind()?;
        let operation = match (self.takes_one(&["add", "min", "max", "and", "or", "xor"]), kind) {
            (Some("add"), "u32" | "s32") => Reduction::Add,
            (Some("min"), "u32") => Reduction::Min,
            (Some("max"), "u32") => Reduction::Max,
            (Some("min"), "s32") => Reduction::MinSigned,
            (Some("max"), "s32") => Reduction::MaxSigned,
            (Some("and"), "b32") => Reduction::And,
            (Some("or"), "b32") => Reduction::Or,
            (Some("xor"), "b32") => Reduction::Xor,
            _ => return Err("an unknown reduction".into()),
        };
        self.expects(3)?;
        let mut step = Step::new(Kind::Redux(operation));
        step.destinations.push(self.destination(0, Width::B32)?);
        step.sources = vec![self.source(1, Width::B32)?, self.source(2, Width::B32)?];
        Ok(Some(vec![step]))
    }

    fn matching(&mut self) -> Decoded {
        if !self.takes("any") {
            return Err("only match.any is known".into());
        }
        self.synchronised()?;
        let (bytes, width) = match self.kind()? {
            "b32" => (4, Width::B32),
            "b64" => (8, Width::B64),
            _ => return Err("not of this type".into()),
        };
        self.expects(3)?;
        let mut step = Step::new(Kind::Match { bytes });
        step.destinations.push(self.destination(0, Width::B32)?);
        step.sources = vec![self.source(1, width)?, self.source(2, Width::B32)?];
        Ok(Some(vec![step]))
    }

    /// The registers of a matrix operand.
    fn registers(&self, index: usize, count: usize) -> Result<&[Operand], super::Fault> {
        let parts = self.parts(index)?;
        if parts.len() == count { Ok(parts) } else { Err(format!("{} registers, {count} are expected", parts.len())) }
    }

    fn load_matrix(&mut self) -> Decoded {
        self.synchronised()?;
        let aligned = self.takes("aligned");
        let shape = self.takes("m8n8");
        let count = match self.takes_one(&["x1", "x2", "x4"]) {
            Some("x1") => 1,
            Some("x2") => 2,
            Some(_) => 4,
            None => return Err("a number of matrices is needed".into()),
        };
        let transposed = self.takes("trans");
        let shared = self.takes_one(&["shared::cta", "shared"]).is_some();
        if !aligned || !shape || !shared || self.kind()? != "b16" {
            return Err("only .aligned.m8n8 of .shared.b16 is known".into());
        }
        self.expects(2)?;
        let (address, narrow, offset, space) = self.address(1)?;
        if space.is_some_and(|space| space != Space::Shared) {
            return Err("an address outside shared memory".into());
        }
        let mut step = Step::new(Kind::LoadMatrix { count, transposed, narrow, offset });
        for part in self.registers(0, usize::from(count))? {
            step.destinations.push(self.destination_of(part, Width::B32)?);
        }
        step.sources.push(address);
        Ok(Some(vec![step]))
    }

    fn mma(&mut self) -> Decoded {
        let name = self.modifiers.join(".");
        self.modifiers.clear();
        let (kind, k, a, b) = match name.as_str() {
            "sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" => (MmaType::Bf16, 16, 4, 2),
            "sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32" => (MmaType::Bf16, 8, 2, 1),
            "sync.aligned.m16n8k16.row.col.f32.f16.f16.f32" => (MmaType::F16, 16, 4, 2),
            "sync.aligned.m16n8k8.row.col.f32.f16.f16.f32" => (MmaType::F16, 8, 2, 1),
            "sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32" => (MmaType::Tf32, 8, 4, 2),
            "sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32" => (MmaType::Tf32, 4, 2, 1),
            _ => return Err("an unknown product".into()),
        };
        self.expects(4)?;
        let mut step = Step::new(Kind::Mma { kind, k });
        for part in self.registers(0, 4)? {
            step.destinations.push(self.destination_of(part, Width::B32)?);
        }
        for (index, count) in [(1, a), (2, b), (3, 4)] {
            for part in self.registers(index, count)? {
                step.sources.push(self.source_of(part, Width::B32)?);
            }
        }
        Ok(Some(vec![step]))
    }
}
