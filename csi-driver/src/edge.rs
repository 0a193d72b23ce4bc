//! Where calls come in: each one has a number, is logged once, counted, and finished even when its caller goes away.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tonic::{Code, Response, Status};

use crate::metrics::Metrics;

/// The edge of one process. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Edge {
    next: Arc<AtomicU64>,
    metrics: Metrics,
}

impl fmt::Debug for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edge").finish_non_exhaustive()
    }
}

impl Edge {
    /// Counts into `metrics`.
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self {
            next: Arc::default(),
            metrics,
        }
    }

    /// Runs a call to its end and answers it.
    ///
    /// In a task of its own: a caller that gives up must not leave a step half done, nor its volume unlocked meanwhile.
    ///
    /// # Errors
    /// The status of the call's error.
    pub(crate) async fn answer<T, E>(
        &self,
        rpc: &'static str,
        volume_id: &str,
        call: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
        E: Error + Send + 'static,
        Status: for<'a> From<&'a E>,
    {
        let request = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let begin = Instant::now();
        let result = tokio::spawn(call).await;
        let seconds = begin.elapsed().as_secs_f64();
        let (result, reason) = match result {
            Ok(Ok(message)) => (Ok(Response::new(message)), None),
            Ok(Err(error)) => (Err(Status::from(&error)), Some(chain(&error))),
            // What was locked is unlocked, what was recorded is recorded; a retry looks at both.
            Err(panic) => (
                Err(Status::internal("the call failed inside")),
                Some(panic.to_string()),
            ),
        };
        let code = result.as_ref().map_or_else(Status::code, |_| Code::Ok);
        self.metrics.answered(rpc, code, seconds);
        let volume = printable(volume_id);
        match reason {
            Some(error) => {
                tracing::warn!(
                    rpc,
                    volume.id = volume,
                    request.id = request,
                    ?code,
                    seconds,
                    error
                );
            }
            None if volume.is_empty() => tracing::debug!(rpc, request.id = request, seconds),
            None => tracing::info!(rpc, volume.id = volume, request.id = request, seconds),
        }
        result
    }
}

/// A call that nothing can go wrong with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Never {}

impl From<&Never> for Status {
    fn from(never: &Never) -> Self {
        match *never {}
    }
}

/// An id from the wire, short enough for a log line.
fn printable(volume_id: &str) -> &str {
    const MOST: usize = 128;
    let end = (0..=MOST.min(volume_id.len()))
        .rev()
        .find(|end| volume_id.is_char_boundary(*end));
    &volume_id[..end.unwrap_or(0)]
}

/// An error with its causes, each said once.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text.push_str(": ");
            text.push_str(&reason);
        }
        cause = error.source();
    }
    text
}
