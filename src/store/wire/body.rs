//! Bodies of answers, which may not fall silent.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use object_store::client::{HttpError, HttpResponseBody};

use super::late;

/// A body with a deadline for each piece of it.
pub(super) struct Watched {
    inner: HttpResponseBody,
    silence: Duration,
    alarm: Option<smol::Timer>,
}

impl Watched {
    pub fn new(inner: HttpResponseBody, silence: Duration) -> Watched {
        Watched {
            inner,
            silence,
            alarm: None,
        }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let silence = self.silence;
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) {
            self.alarm = None;
            return Poll::Ready(frame);
        }
        let alarm = self
            .alarm
            .get_or_insert_with(|| smol::Timer::after(silence));
        let rings = Future::poll(Pin::new(alarm), context);
        rings.map(|_| Some(Err(late(silence))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// What an answer says about a failure, as far as it can be read.
pub(super) async fn text(body: HttpResponseBody) -> String {
    let bytes = body.bytes().await.unwrap_or_default();
    let bytes = bytes.get(..TEXT_MAX).unwrap_or(&bytes);
    String::from_utf8_lossy(bytes).into_owned()
}

const TEXT_MAX: usize = 16 << 10;
