//! A job's events: how far it is, and what it looks like.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::stream::unfold;
use serde_json::json;
use tokio::sync::watch;

use super::job::{Job, Watching};
use super::state::{Shared, Stopping, closing};

/// A stream of events: where it has got to.
struct Following {
    shared: Arc<Shared>,
    job: Arc<Job>,
    changed: watch::Receiver<u64>,
    stopping: watch::Receiver<Stopping>,
    /// The last preview of each image that was sent, and how many images.
    sent: Vec<u64>,
    images: Vec<bool>,
    pending: VecDeque<Event>,
    ended: bool,
    _watching: Option<Watching>,
}

/// The events of a job until it ends: `job` (its state), `preview` (what an image looks like), `image` (one that is
/// there), and in the end `end`. A client that reads slowly misses states in between, never the last.
pub fn follow(shared: &Arc<Shared>, job: Arc<Job>, previews: bool) -> Response {
    let mut changed = job.subscribe();
    changed.mark_changed();
    let count = job.order.request.labels.len();
    let following = Following {
        shared: shared.clone(),
        stopping: shared.stopping.subscribe(),
        changed,
        sent: vec![0; count],
        images: vec![false; count],
        pending: VecDeque::new(),
        ended: false,
        _watching: previews.then(|| job.watch()),
        job,
    };
    let stream = unfold(following, |mut following| async move {
        let event = following.next().await?;
        Some((Ok::<Event, Infallible>(event), following))
    });
    Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(10))).into_response()
}

impl Following {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            tokio::select! {
                change = self.changed.changed() => change.ok()?,
                // The server closes: whoever asks again is told by the next one.
                () = closing(&mut self.stopping) => return None,
            }
            self.look();
        }
    }

    /// Notes what is new.
    fn look(&mut self) {
        let view = self.job.view(Some(self.shared.jobs.place(&self.job)));
        let ends = view.status.is_end();
        let state = serde_json::to_string(&view).unwrap_or_default();
        self.pending.push_back(Event::default().event("job").data(state));
        let job = self.job.clone();
        let state = job.state();
        if self._watching.is_some() {
            for (index, preview) in state.previews.iter().enumerate() {
                let Some((version, png)) = preview.as_ref().filter(|(version, _)| *version > self.sent[index]) else {
                    continue;
                };
                self.sent[index] = *version;
                let data =
                    json!({ "index": index, "image": format!("data:image/png;base64,{}", BASE64.encode(&**png)) });
                self.pending.push_back(Event::default().event("preview").data(data.to_string()));
            }
        }
        for (index, image) in state.images.iter().enumerate() {
            if image.is_some() && !self.images[index] {
                self.images[index] = true;
                let data = json!({ "index": index, "url": format!("/v1/jobs/{}/images/{index}.png", job.id) });
                self.pending.push_back(Event::default().event("image").data(data.to_string()));
            }
        }
        if ends {
            self.ended = true;
            self.pending.push_back(Event::default().event("end").data(json!({ "status": view.status }).to_string()));
        }
    }
}
