//! A job's progress and previews as server-sent events.

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

use super::job::{Job, Phase, Watching};
use super::state::{Shared, Stopping, closing};

/// Interval of keep-alive lines, so that an idle connection is not closed.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A change of a job.
pub enum News {
    /// Its state has changed.
    State,
    /// A preview of an image: its index, a PNG, and the share of the job that is done.
    Preview(usize, Arc<Vec<u8>>, f64),
    /// The image at this index is finished.
    Image(usize),
    /// The job has ended, with an error if it failed. No event follows.
    End(Phase, Option<String>),
}

/// A stream of changes, and its position.
struct Following<W> {
    job: Arc<Job>,
    changed: watch::Receiver<u64>,
    stopping: watch::Receiver<Stopping>,
    /// For each image the version of the last preview sent, and whether the image was reported.
    told: Vec<(u64, bool)>,
    pending: VecDeque<News>,
    ended: bool,
    watching: Option<Watching>,
    words: W,
}

/// The events of a job until it ends, formatted by `words`; with previews on request. A client that reads slowly misses
/// intermediate states and previews, but never an image or the end.
pub fn follow<W>(shared: &Shared, job: Arc<Job>, previews: bool, words: W) -> Response
where
    W: FnMut(&Job, News) -> Option<Event> + Send + 'static,
{
    let mut changed = job.subscribe();
    changed.mark_changed();
    let following = Following {
        changed,
        stopping: shared.stopping.subscribe(),
        told: vec![(0, false); job.order.request.labels.len()],
        pending: VecDeque::new(),
        ended: false,
        watching: previews.then(|| job.watch()),
        job,
        words,
    };
    let stream = unfold(following, |mut following| async move {
        let event = following.next().await?;
        Some((Ok::<Event, Infallible>(event), following))
    });
    Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

impl<W: FnMut(&Job, News) -> Option<Event>> Following<W> {
    async fn next(&mut self) -> Option<Event> {
        loop {
            while let Some(news) = self.pending.pop_front() {
                if let Some(event) = (self.words)(&self.job, news) {
                    return Some(event);
                }
            }
            if self.ended {
                return None;
            }
            tokio::select! {
                change = self.changed.changed() => change.ok()?,
                // The server closes; a client that reconnects finds the next server.
                () = closing(&mut self.stopping) => return None,
            }
            self.look();
        }
    }

    /// Records the changes.
    fn look(&mut self) {
        let state = self.job.state();
        self.pending.push_back(News::State);
        let share = state.done as f64 / state.total.max(1) as f64;
        for (place, ((last, _), preview)) in self.told.iter_mut().zip(&state.previews).enumerate() {
            if let Some((version, png)) = preview.as_ref().filter(|(version, _)| version > last)
                && self.watching.is_some()
            {
                *last = *version;
                self.pending.push_back(News::Preview(place, png.clone(), share));
            }
        }
        for (place, ((_, told), image)) in self.told.iter_mut().zip(&state.images).enumerate() {
            if image.is_some() && !std::mem::replace(told, true) {
                self.pending.push_back(News::Image(place));
            }
        }
        if state.phase.is_end() {
            self.ended = true;
            self.pending.push_back(News::End(state.phase, state.error.clone()));
        }
    }
}

/// Our own events: `job` (its state), `preview` (a preview of an image), `image` (a finished one), and finally `end`.
pub fn own(shared: &Arc<Shared>, job: Arc<Job>, previews: bool) -> Response {
    let all = shared.clone();
    follow(shared, job, previews, move |job, news| {
        let (name, data) = match news {
            News::State => {
                let view = job.view(Some(all.jobs.place(job)));
                ("job", serde_json::to_value(&view).unwrap_or_default())
            }
            News::Preview(place, png, _) => {
                let url = format!("data:image/png;base64,{}", BASE64.encode(&*png));
                ("preview", json!({ "index": place, "image": url }))
            }
            News::Image(place) => {
                ("image", json!({ "index": place, "url": format!("/v1/jobs/{}/images/{place}.png", job.id) }))
            }
            News::End(phase, _) => ("end", json!({ "status": phase })),
        };
        Some(Event::default().event(name).data(data.to_string()))
    })
}
