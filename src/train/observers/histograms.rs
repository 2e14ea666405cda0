//! Weight histograms for TensorBoard.

use crate::config::Every;
use crate::error::Result;
use crate::train::{Observer, Place, Run};

pub(super) struct Histograms {
    pub every: Every,
}

impl Observer for Histograms {
    fn is_due(&self, place: Place) -> bool {
        place.is_due(self.every)
    }

    fn act(&mut self, run: &mut Run) -> Result<()> {
        let step = run.place().step;
        let parameters = run.trainer().parameters().clone();
        let flat = parameters.download()?;
        for spec in parameters.specs() {
            let values = &flat[spec.offset..][..spec.shape.len()];
            run.journal(|journal| journal.histogram(&format!("weights/{}", spec.name), step, values))?;
        }
        Ok(())
    }
}
