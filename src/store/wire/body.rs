//! Bodies of answers, which may not fall silent.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use machine::Class;
use object_store::client::{HttpError, HttpResponseBody};

use super::fault::transport;
use super::late;
use crate::failure::{Failure, Outcome};

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

/// All of a body that is no object's, up to a bound.
pub(super) async fn text(mut body: HttpResponseBody, bytes_max: usize) -> Outcome<String> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| transport(&error, "answer"))?;
        bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data.as_ref()));
        if bytes.len() > bytes_max {
            let message = format!("the answer has more than {bytes_max} bytes");
            return Err(Failure::new(Class::Corrupt, message));
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A thousand keys have a megabyte.
pub(super) const TEXT_MAX: usize = 16 << 20;
